"""The studio's page and the HTTP API of an `Engine`. The server keeps no state between requests.

To add an endpoint, write one function here with a decorator of `router`; its request and response are models
of `schemas`. /openapi.json then includes the endpoint.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, File, HTTPException, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.serve import Serve, engine, schemas
from npdraw_dist.serve.middleware import Guard
from npdraw_dist.serve.replica import Replica
from npdraw_dist.system.errors import StorageFailed
from npdraw_dist.system.version import __version__

TITLE = "NP-DRAW studio"
DESCRIPTION = """Sample, encode, complete, edit and decode with one model. The server keeps nothing: a drawing
z travels with each request and each response."""
REASONS = {
    400: "The body cannot be read",
    401: "The token is missing or wrong",
    408: "The body took too long",
    413: "The body is too large",
    422: "The request is refused, with the reason",
}
REFUSED: dict[int | str, dict[str, Any]] = {
    **{code: {"model": schemas.ErrorResponse, "description": text} for code, text in REASONS.items()},
    503: {"content": {"text/plain": {}}, "description": "Too many requests wait; try again"},
}

Route = TypeVar("Route", bound=Callable[..., Any])
facts = APIRouter(responses=REFUSED)
router = APIRouter(prefix="/v1", responses=REFUSED)


def build_app(replica: Callable[[], Replica], options: Serve, at_once: int | None = None) -> FastAPI:
    """Builds the application. replica: called at each request for its replica. at_once: see `Guard`."""
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,  # FastAPI's page loads its script from another host
        redoc_url=None,
    )
    app.state.replica = replica
    for routes in (facts, router):
        app.include_router(routes)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(ValueError, _refuse)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(options.hosts))
    app.add_middleware(Guard, token=options.token, at_once=at_once)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """Responds with 422 and the errors in one line. It omits the request, which may contain anything."""
    assert isinstance(error, RequestValidationError)
    items = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
        for item in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(items[:5])}, 422)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    """Responds with 422 to a request for which the engine raised ValueError, as it does not fit the model."""
    if isinstance(error, StorageFailed | ValidationError):  # the server's failure, not the user's
        raise error
    return JSONResponse({"detail": str(error)}, 422)


async def _replica(request: Request) -> Replica:
    found: Replica = request.app.state.replica()
    return found


Served = Annotated[Replica, Depends(_replica)]


# ---------------------------------------------------------------------------------- pages and facts


@cache
def studio_page() -> tuple[str, str]:
    """Returns page.html with its style sheet and scripts inserted, and its content security policy.

    One request loads the whole page. The policy allows its scripts and styles by digest, and no other source.
    """
    folder = resources.files("npdraw_dist.serve")

    def inline(found: re.Match[str]) -> str:
        tag, name = ("style", found[1]) if found[1] else ("script", found[2])
        return f"<{tag}>{(folder / name).read_text('utf-8')}</{tag}>"

    named = r'<link rel="stylesheet" href="(.+?)">|<script src="(.+?)"></script>'
    html = re.sub(named, inline, (folder / "page.html").read_text("utf-8"))

    def digests(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        made = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in made)

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return html, policy


@facts.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def studio() -> HTMLResponse:
    html, policy = studio_page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@facts.head("/healthz", include_in_schema=False)
@facts.get("/healthz", summary="Whether the server answers")
async def healthz() -> schemas.HealthResponse:
    return schemas.HealthResponse(version=__version__)


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
    """The fields of an EncodeResponse. encode: image -> its drawing, and as base64 the image that it read."""
    drawing, original = await replica.run(encode, image)
    return {**dict(await replica.respond(drawing)), "original": original}


@router.post("/encode", summary="The most likely drawing of an uploaded picture")
async def encode(
    file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, BMP or GIF, at most 8 MiB")],
    replica: Served,
    invert: Annotated[
        schemas.Choice,
        Query(description="auto: invert a grey picture whose paper is unlike the model's background"),
    ] = "auto",
    crop: Annotated[
        schemas.Crop,
        Query(description="auto: take the ink on plain paper, scaled as drawings are; no: take the centre"),
    ] = "auto",
) -> schemas.PlacedResponse:
    image, placed = await replica.run(replica.engine.place_upload, await file.read(), invert, crop == "auto")
    return schemas.PlacedResponse(**await _encoded(replica, replica.engine.encode, image), placement=placed)


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
    request: Annotated[schemas.GalleryRequest, Query()], replica: Served
) -> schemas.DrawingsResponse:
    return await _all(replica, partial(replica.engine.sample, request, request.n))


@router.post("/decode", summary="Canvas and image of a drawing")
async def decode(request: schemas.DecodeRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(await replica.run(replica.engine.drawing, request.z))


@router.post("/compose", summary="A drawing with B's parts at some places of A")
async def compose(request: schemas.ComposeRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(*await replica.run(replica.engine.compose, request))


@router.post("/edit", summary="A drawing after one edit: parts are put, removed, moved or swapped")
async def edit(request: schemas.EditRequest, replica: Served) -> schemas.DrawingResponse:
    return await replica.respond(*await replica.run(replica.engine.edit, request))


@router.post("/complete", summary="Drawings that keep some places, completed by the prior")
async def complete(request: schemas.CompleteRequest, replica: Served) -> schemas.DrawingsResponse:
    return await _all(replica, partial(replica.engine.complete, request))


@router.post("/next", summary="Where the prior draws next, and the likeliest parts at a place")
async def next_part(request: schemas.NextRequest, replica: Served) -> schemas.NextResponse:
    return await replica.run(replica.engine.next_part, request)


@router.post("/surprise", summary="How little the prior expected each part")
async def surprise(request: schemas.DecodeRequest, replica: Served) -> schemas.SurpriseResponse:
    return await replica.run(replica.engine.surprise, request.z)


@router.post("/interpolate", summary="From A to B, one place after another")
async def interpolate(request: schemas.InterpolateRequest, replica: Served) -> schemas.DrawingsResponse:
    return await _all(replica, partial(replica.engine.between, request))


@router.get("/examples", summary="Likely drawings that differ from each other")
async def examples(replica: Served) -> schemas.ExamplesResponse:
    return await replica.once(replica.engine.examples)


@router.post("/steps", summary="The drawing step by step, as pictures")
async def steps(request: schemas.DecodeRequest, replica: Served) -> schemas.StepsResponse:
    return await replica.run(replica.engine.frames, request.z)


# ------------------------------------------------------------------------------------------ files


def _file(path: str, kind: str, summary: str) -> Callable[[Route], Route]:
    """The decorator of a POST route that responds with a file. kind: the media type of the file."""
    answers: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {}}, "description": summary}}
    return router.post(path, summary=summary, response_class=Response, responses=answers)


async def _download(
    z: schemas.Latents, replica: Replica, make: Callable[..., bytes], kind: str, name: str
) -> Response:
    """Responds with a file of the drawing. make: (model, drawing) -> content. kind: media type."""
    drawing = await replica.run(replica.engine.drawing, z)
    content = await replica.run(make, replica.engine.model, drawing)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=headers)


@_file("/steps.gif", "image/gif", "The drawing step by step, as an animation")
async def animation(request: schemas.DecodeRequest, replica: Served) -> Response:
    return await _download(request.z, replica, engine.gif, "image/gif", "drawing.gif")


@_file("/strip.png", "image/png", "The drawing step by step, side by side")
async def strip(request: schemas.StripRequest, replica: Served) -> Response:
    make = partial(engine.strip, frames=request.frames)
    return await _download(request.z, replica, make, "image/png", "steps.png")


@_file("/drawing.pdf", "application/pdf", "Canvas and image as a vector file")
async def drawing_pdf(request: schemas.FigureRequest, replica: Served) -> Response:
    make = partial(engine.figure, outlines=request.outlines)
    return await _download(request.z, replica, make, "application/pdf", "drawing.pdf")
