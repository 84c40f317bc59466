"""The HTTP API over an `Engine`: routes and pages. It holds no state and touches no file.

To add an endpoint, write one function here with a decorator of `router`; its request and response are models
of `schemas`. /openapi.json follows.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, File, HTTPException, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

import npdraw_dist
from npdraw_dist.core.errors import StorageFailed
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.serve import Serve, exports, schemas
from npdraw_dist.serve.middleware import Guard
from npdraw_dist.serve.pages import studio_page
from npdraw_dist.serve.replica import Replica

TITLE = "NP-DRAW studio"
DESCRIPTION = """Sample, encode, complete, edit and decode with one model. The server keeps nothing: a drawing
z travels with each request and each response. 400: the body cannot be read. 401: the server wants its token.
408: the body took too long. 413: it is too large. 422: the request is refused, with the reason. 503: too many
requests wait already; try again."""
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": schemas.ErrorResponse, "description": "The body cannot be read"},
    401: {"model": schemas.ErrorResponse, "description": "The token is missing or wrong"},
    408: {"model": schemas.ErrorResponse, "description": "The body took too long"},
    413: {"model": schemas.ErrorResponse, "description": "Too large"},
    422: {"model": schemas.ErrorResponse, "description": "Refused, with the reason"},
    503: {"content": {"text/plain": {}}, "description": "Too many requests wait"},  # also by Ray Serve itself
}

Route = TypeVar("Route", bound=Callable[..., Any])
pages = APIRouter(include_in_schema=False)
facts = APIRouter(responses=REFUSED)
router = APIRouter(prefix="/v1", responses=REFUSED)


def build_app(replica: Callable[[], Replica], options: Serve, at_once: int | None = None) -> FastAPI:
    """The application. replica: called at each request. at_once: as of `Guard`."""
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=npdraw_dist.__version__,
        docs_url=None,  # FastAPI's own page loads its script from elsewhere
        redoc_url=None,
    )
    app.state.replica = replica
    for routes in (pages, facts, router):
        app.include_router(routes)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(ValueError, _refuse)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(options.hosts))
    app.add_middleware(Guard, token=options.token, at_once=at_once)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """The errors in one line. The request is not repeated in it, since it may hold anything."""
    assert isinstance(error, RequestValidationError)
    items = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
        for item in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(items[:5])}, 422)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    """The engine raises ValueError on what does not fit the model."""
    if isinstance(error, StorageFailed | ValidationError):  # ours, not the request's
        raise error
    return JSONResponse({"detail": str(error)}, 422)


async def _replica(request: Request) -> Replica:
    found: Replica = request.app.state.replica()
    return found


Served = Annotated[Replica, Depends(_replica)]


# ---------------------------------------------------------------------------------- pages and facts


@pages.api_route("/", methods=["GET", "HEAD"])
async def studio() -> HTMLResponse:
    return studio_page()


@pages.head("/healthz")
@facts.get("/healthz", summary="Whether the server answers")
async def healthz() -> schemas.HealthResponse:
    return schemas.HealthResponse(version=npdraw_dist.__version__)


@router.get("/model", summary="The sizes of the model: image, canvas, grid of places, bank")
async def model(replica: Served) -> schemas.ModelResponse:
    return replica.engine.describe()


@router.get("/bank", summary="All parts of the bank in one picture")
async def bank(replica: Served) -> schemas.BankResponse:
    return await replica.once(replica.engine.bank)


# --------------------------------------------------------------------------------------- pictures


async def _encoded(
    replica: Replica, encode: Callable[[Any], tuple[Drawings, str]], image: Any
) -> dict[str, Any]:
    """The fields of an EncodeResponse. encode: picture -> its drawing, and the picture as it takes it."""
    drawing, original = await replica.run(encode, image)
    return {**dict(await replica.respond(drawing)), "original": original}


@router.post("/encode", summary="The most likely drawing of an uploaded picture, placed by itself")
async def encode(
    file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, BMP or GIF, at most 8 MiB")],
    replica: Served,
    invert: Annotated[
        schemas.Choice,
        Query(description="auto: a grey picture whose paper is not like the model's background"),
    ] = "auto",
    crop: Annotated[
        schemas.Crop,
        Query(
            description="auto: what is drawn on plain paper, as large as drawings are; no: the centre square"
        ),
    ] = "auto",
) -> schemas.PlacedResponse:
    engine = replica.engine
    image, placed = await replica.run(engine.place_upload, await file.read(), invert, crop == "auto")
    return schemas.PlacedResponse(**await _encoded(replica, engine.encode, image), placement=placed)


@router.get(
    "/test/{index}",
    summary="The most likely drawing of an image of the model's test set",
    responses={404: {"model": schemas.ErrorResponse, "description": "No such image"}},
)
async def encode_test_image(
    index: Annotated[int, Path(ge=0, lt=2**31)], replica: Served
) -> schemas.EncodeResponse:
    try:
        image = await replica.run(replica.engine.test_image, index)
    except IndexError as error:
        raise HTTPException(404, str(error)) from None
    return schemas.EncodeResponse(**await _encoded(replica, replica.engine.encode, image))


@router.post("/parse", summary="The drawing that the heuristic parser finds in a picture")
async def parse(request: schemas.ParseRequest, replica: Served) -> schemas.EncodeResponse:
    return schemas.EncodeResponse(**await _encoded(replica, replica.engine.parse, request))


# --------------------------------------------------------------------------------------- drawings


async def _all(replica: Replica, make: Callable[[], Drawings]) -> schemas.DrawingsResponse:
    made = await replica.run(make)
    return schemas.DrawingsResponse(drawings=await replica.run(replica.engine.responses, [made]))


@router.post("/sample", summary="A drawing sampled from the prior, by seed, temperature and condition")
async def sample(request: schemas.SampleRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(await replica.run(replica.engine.sample, request))


@router.get("/gallery", summary="Drawings sampled from the prior")
async def gallery(
    replica: Served,
    n: Annotated[int, Query(ge=1, le=32)] = 12,
    seed: schemas.Seed = 0,
    temperature: schemas.Temperature | None = None,
    condition: schemas.Condition = None,
    guidance: schemas.Guidance = 1.0,
) -> schemas.DrawingsResponse:
    asked = schemas.SampleRequest(seed=seed, temperature=temperature, condition=condition, guidance=guidance)
    return await _all(replica, partial(replica.engine.sample, asked, n))


@router.post("/decode", summary="Canvas and image of a drawing")
async def decode(request: schemas.DecodeRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(await replica.run(replica.engine.drawing, request.z))


@router.post("/compose", summary="B's parts at some places on A's canvas")
async def compose(request: schemas.ComposeRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(*await replica.run(replica.engine.compose, request))


@router.post("/edit", summary="A part put, removed, moved or swapped")
async def edit(request: schemas.EditRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(*await replica.run(replica.engine.edit, request))


@router.post("/complete", summary="Drawings that keep some places, completed by the prior")
async def complete(request: schemas.CompleteRequest, replica: Served) -> schemas.DrawingsResponse:
    return await _all(replica, partial(replica.engine.complete, request))


@router.post("/next", summary="Where the prior draws next, and the likeliest parts at a place")
async def next_part(request: schemas.NextRequest, replica: Served) -> schemas.NextResponse:
    return await replica.run(replica.engine.next_part, request)


@router.post("/surprise", summary="Where the prior did not expect what is drawn")
async def surprise(request: schemas.DecodeRequest, replica: Served) -> schemas.SurpriseResponse:
    return await replica.run(replica.engine.surprise, request.z)


@router.post("/interpolate", summary="From A to B, one place after another")
async def interpolate(request: schemas.InterpolateRequest, replica: Served) -> schemas.DrawingsResponse:
    return await _all(replica, partial(replica.engine.between, request))


@router.get("/examples", summary="Good drawings to begin with")
async def examples(replica: Served) -> schemas.ExamplesResponse:
    return await replica.once(replica.engine.examples)


@router.post("/steps", summary="The drawing step by step, as pictures")
async def steps(request: schemas.DecodeRequest, replica: Served) -> schemas.StepsResponse:
    return await replica.run(replica.engine.frames, request.z)


# ------------------------------------------------------------------------------------------ files


def _file(path: str, summary: str, kind: str, what: str) -> Callable[[Route], Route]:
    """The decorator of a route whose answer is a file."""
    answers: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {}}, "description": what}}
    return router.post(path, summary=summary, response_class=Response, responses=answers)


async def _download(
    z: schemas.Latents, replica: Replica, make: Callable[..., bytes], kind: str, name: str
) -> Response:
    """make: model and drawing -> the file of this kind and name."""
    drawing = await replica.run(replica.engine.drawing, z)
    content = await replica.run(make, replica.engine.model, drawing)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=headers)


@_file("/steps.gif", "The drawing step by step, as an animation", "image/gif", "A GIF")
async def animation(request: schemas.DecodeRequest, replica: Served) -> Response:
    return await _download(request.z, replica, exports.gif, "image/gif", "drawing.gif")


@_file("/strip.png", "The drawing step by step, side by side", "image/png", "A PNG")
async def strip(request: schemas.StripRequest, replica: Served) -> Response:
    make = partial(exports.strip, frames=request.frames)
    return await _download(request.z, replica, make, "image/png", "steps.png")


@_file("/drawing.pdf", "Canvas and image as a vector file", "application/pdf", "A PDF")
async def drawing_pdf(request: schemas.FigureRequest, replica: Served) -> Response:
    make = partial(exports.figure, outlines=request.outlines)
    return await _download(request.z, replica, make, "application/pdf", "drawing.pdf")
