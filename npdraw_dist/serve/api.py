"""The HTTP API over an `Engine`: routes, limits and headers. It holds no state and touches no file.

To add an endpoint, write one function in `api_v1` with a decorator of its `router`; its request and response
are models of `schemas`, and `engine` does the work. The reference follows the OpenAPI schema. Here are the
pages, and the paths that older versions have without /v1 too.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, FastAPI, File, HTTPException, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor

import npdraw_dist
from npdraw_dist.serve import api_v1, schemas
from npdraw_dist.serve.guard import ASSETS, Guard, Limits
from npdraw_dist.serve.metrics import VERSION, Measured, Metrics
from npdraw_dist.serve.pages import Page, editor_page, reference_page
from npdraw_dist.serve.service import REFUSED, Replica, Service, checked
from npdraw_dist.serve.swagger import FILES, asset, try_page

LOOPBACK = ("127.0.0.1", "localhost")

TITLE = "NP-DRAW editor"
DESCRIPTION = """Sample, encode, complete, edit and decode with one model. The server keeps nothing: a drawing
z travels with each request and each response. Paths under /v1 stay as they are; the same ones without it are
those of older versions. 401: the server wants its token. 413: the body is too large. 422: the request is
refused, with the reason. 429: too many requests from this address. 503: too many requests wait already; try
again."""

pages = APIRouter(include_in_schema=False)
router = APIRouter(responses=REFUSED)  # at the root, as in older versions, and under /v1
root_router = APIRouter(responses=REFUSED)  # what /v1 has in another form


def build_app(
    service: Callable[[], Service], hosts: tuple[str, ...] = LOOPBACK, limits: Limits | None = None
) -> FastAPI:
    """The application. service: called at each request. hosts: values of Host that are accepted."""
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=npdraw_dist.__version__,
        docs_url=None,  # FastAPI's own page loads its script from elsewhere
        redoc_url=None,
    )
    app.state.service, app.state.metrics = service, Metrics()
    for routes in (pages, router, root_router):
        app.include_router(routes)
    for routes in (router, api_v1.router):
        app.include_router(routes, prefix=VERSION)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Guard, limits=limits)
    app.add_middleware(Measured, metrics=app.state.metrics)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """The errors in one line. The request is not repeated in it, since it may hold anything."""
    assert isinstance(error, RequestValidationError)
    items = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
        for item in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(items[:5])}, 422)


# ------------------------------------------------------------------------------------------ pages


def _html(page: Page) -> HTMLResponse:
    return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


@pages.get("/")
async def editor() -> HTMLResponse:
    return _html(editor_page())


@pages.get("/docs")
async def documentation() -> HTMLResponse:
    return _html(try_page(TITLE))


@pages.get("/reference")
async def reference(request: Request) -> HTMLResponse:
    return _html(reference_page(request.app.openapi()))


@pages.get(ASSETS + "{name}")
async def page_file(name: str, request: Request) -> Response:
    if name not in FILES:
        raise HTTPException(404, "Not Found")
    return asset(name, "gzip" in request.headers.get("accept-encoding", ""))


@pages.get("/metrics")
async def metrics(request: Request) -> Response:
    text: bytes = request.app.state.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


# ------------------------------------------------------------------------------------------ facts


@router.get("/healthz", summary="Whether the server answers")
async def healthz() -> schemas.HealthResponse:
    return schemas.HealthResponse(version=npdraw_dist.__version__)


@router.get("/model", summary="The sizes of the model: image, canvas, grid of places, bank")
async def model(replica: Replica) -> schemas.ModelResponse:
    return replica.engine.describe()


@router.get("/bank", summary="All parts of the bank in one picture")
async def bank(replica: Replica) -> schemas.BankResponse:
    return await replica.once(replica.engine.bank)


# --------------------------------------------------------------------------------------- drawings


@router.post("/sample", summary="A drawing sampled from the prior, by seed and temperature")
async def sample(request: schemas.SampleRequest, replica: Replica) -> schemas.DrawingResponse:
    return await replica.decode(await replica.run(replica.engine.sample, request.seed, request.temperature))


async def _encode(image: Tensor, replica: Service) -> schemas.EncodeResponse:
    z, original = await replica.run(replica.engine.encode, image)
    return schemas.EncodeResponse(**(await replica.decode(z)).model_dump(), original=original)


@root_router.post("/encode", summary="The most likely drawing of an uploaded picture")
async def encode(
    file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, BMP or GIF, at most 8 MiB")],
    replica: Replica,
    invert: Annotated[bool, Query(description="dark ink on white becomes bright ink on black")] = False,
) -> schemas.EncodeResponse:
    image = await checked(replica, replica.engine.read_upload, await file.read(), invert)
    return await _encode(image, replica)


@router.get(
    "/test/{index}",
    summary="The most likely drawing of an image of the model's test set",
    responses={404: {"model": schemas.ErrorResponse, "description": "No such image"}},
)
async def encode_test_image(
    index: Annotated[int, Path(ge=0, lt=2**31)], replica: Replica
) -> schemas.EncodeResponse:
    try:
        image = await replica.run(replica.engine.test_image, index)
    except IndexError as error:
        raise HTTPException(404, str(error)) from None
    return await _encode(image, replica)


@router.post("/decode", summary="Canvas and image of a drawing")
async def decode(request: schemas.DecodeRequest, replica: Replica) -> schemas.DrawingResponse:
    return await replica.decode(await checked(replica, replica.engine.sequence, request.z))


@router.post("/compose", summary="B's parts at some places on A's canvas")
async def compose(request: schemas.ComposeRequest, replica: Replica) -> schemas.DrawingResponse:
    z, dropped = await checked(replica, replica.engine.compose, request)
    return (await replica.decode(z)).model_copy(update={"dropped": dropped})


@router.post("/edit", summary="A part put, removed, moved or swapped")
async def edit(request: schemas.EditRequest, replica: Replica) -> schemas.DrawingResponse:
    z, dropped = await checked(replica, replica.engine.edit, request)
    return (await replica.decode(z)).model_copy(update={"dropped": dropped})


@router.post("/steps", summary="The drawing step by step, as pictures")
async def steps(request: schemas.DecodeRequest, replica: Replica) -> schemas.StepsResponse:
    z = await checked(replica, replica.engine.sequence, request.z)
    return await replica.run(replica.engine.frames, z)


@router.post(
    "/steps.gif",
    summary="The drawing step by step, as an animation",
    response_class=Response,
    responses={200: {"content": {"image/gif": {}}, "description": "A GIF"}},
)
async def animation(request: schemas.DecodeRequest, replica: Replica) -> Response:
    z = await checked(replica, replica.engine.sequence, request.z)
    return Response(await replica.run(replica.engine.gif, z), media_type="image/gif")
