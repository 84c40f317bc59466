"""The HTTP API over an `Engine`: routes, limits and headers. It holds no state and touches no file.

To add an endpoint, write one function here with a decorator of `router`; its request and response are
models of `schemas`, and `engine` does the work. Page and reference follow the OpenAPI schema.
"""

from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, FastAPI, File, HTTPException, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor

import npdraw_dist
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.serve import schemas
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.guard import Guard
from npdraw_dist.serve.pages import Page, editor_page, reference_page

Result = TypeVar("Result")

LOOPBACK = ("127.0.0.1", "localhost")

TITLE = "NP-DRAW editor"
DESCRIPTION = """Sample, encode, edit and decode with one model. The server keeps nothing: a drawing z
travels with each request and each response. 413: the body is too large. 422: the request is refused, with
the reason. 503: too many requests wait already; try again."""


class Service(Protocol):
    """What a replica offers to the routes."""

    engine: Engine

    async def decode(self, z: PartSequence) -> schemas.DrawingResponse:
        """`Engine.decode` of one drawing (1, T), in one batch with those of other requests."""

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)` in a thread beside the event loop."""


REFUSED: dict[int | str, dict[str, Any]] = {
    413: {"model": schemas.ErrorResponse, "description": "Too large"},
    422: {"model": schemas.ErrorResponse, "description": "Refused, with the reason"},
    503: {"content": {"text/plain": {}}, "description": "Too many requests wait"},  # by Ray Serve itself
}
router = APIRouter(responses=REFUSED)


def build_app(service: Callable[[], Service], hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The application. service: called at each request. hosts: values of Host that are accepted."""
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=npdraw_dist.__version__,
        docs_url=None,  # FastAPI's own page loads its script from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Guard)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """The errors in one line. The request is not repeated in it, since it may hold anything."""
    assert isinstance(error, RequestValidationError)
    items = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
        for item in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(items[:5])}, 422)


async def _service(request: Request) -> Service:
    found: Service = request.app.state.service()
    return found


Replica = Annotated[Service, Depends(_service)]


async def _checked(replica: Service, function: Callable[..., Result], *arguments: Any) -> Result:
    """`replica.run`, with a ValueError answered by 422."""
    try:
        return await replica.run(function, *arguments)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


# ------------------------------------------------------------------------------------------ pages


def _html(page: Page) -> HTMLResponse:
    return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


@router.get("/", include_in_schema=False)
async def editor() -> HTMLResponse:
    return _html(editor_page())


@router.get("/docs", include_in_schema=False)
async def reference(request: Request) -> HTMLResponse:
    return _html(reference_page(request.app.openapi()))


# ------------------------------------------------------------------------------------------ facts


@router.get("/healthz", summary="Whether the server answers")
async def healthz() -> schemas.HealthResponse:
    return schemas.HealthResponse(version=npdraw_dist.__version__)


@router.get("/model", summary="The sizes of the model: image, canvas, grid of places, bank")
async def model(replica: Replica) -> schemas.ModelResponse:
    return replica.engine.describe()


@router.get("/bank", summary="All parts of the bank in one picture")
async def bank(replica: Replica) -> schemas.BankResponse:
    return replica.engine.bank()


# --------------------------------------------------------------------------------------- drawings


@router.post("/sample", summary="A drawing sampled from the prior, by seed and temperature")
async def sample(request: schemas.SampleRequest, replica: Replica) -> schemas.DrawingResponse:
    return await replica.decode(await replica.run(replica.engine.sample, request.seed, request.temperature))


async def _encode(image: Tensor, replica: Service) -> schemas.EncodeResponse:
    z, original = await replica.run(replica.engine.encode, image)
    return schemas.EncodeResponse(**(await replica.decode(z)).model_dump(), original=original)


@router.post("/encode", summary="The most likely drawing of an uploaded picture")
async def encode(
    file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, BMP or GIF, at most 8 MiB")],
    replica: Replica,
    invert: Annotated[bool, Query(description="dark ink on white becomes bright ink on black")] = False,
) -> schemas.EncodeResponse:
    image = await _checked(replica, replica.engine.read_upload, await file.read(), invert)
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
    return await replica.decode(await _checked(replica, replica.engine.sequence, request.z))


@router.post("/compose", summary="B's parts at some places on A's canvas")
async def compose(request: schemas.ComposeRequest, replica: Replica) -> schemas.DrawingResponse:
    z, dropped = await _checked(replica, replica.engine.compose, request)
    return (await replica.decode(z)).model_copy(update={"dropped": dropped})


@router.post("/edit", summary="A part put, removed, moved or swapped")
async def edit(request: schemas.EditRequest, replica: Replica) -> schemas.DrawingResponse:
    z, dropped = await _checked(replica, replica.engine.edit, request)
    return (await replica.decode(z)).model_copy(update={"dropped": dropped})


@router.post("/steps", summary="The drawing step by step, as pictures")
async def steps(request: schemas.DecodeRequest, replica: Replica) -> schemas.StepsResponse:
    z = await _checked(replica, replica.engine.sequence, request.z)
    return await replica.run(replica.engine.frames, z)


@router.post(
    "/steps.gif",
    summary="The drawing step by step, as an animation",
    response_class=Response,
    responses={200: {"content": {"image/gif": {}}, "description": "A GIF"}},
)
async def animation(request: schemas.DecodeRequest, replica: Replica) -> Response:
    z = await _checked(replica, replica.engine.sequence, request.z)
    return Response(await replica.run(replica.engine.gif, z), media_type="image/gif")
