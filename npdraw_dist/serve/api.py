"""The HTTP API over an `Engine`: routes, limits and headers. It holds no state and touches no file."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, File, HTTPException, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

import npdraw_dist
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.serve import schemas
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.guard import Guard
from npdraw_dist.serve.pages import editor_page, reference_page

LOOPBACK = ("127.0.0.1", "localhost")

TITLE = "NP-DRAW editor"
ABOUT = """Draw, encode, edit and decode with one model. The server keeps nothing: a drawing z travels
with each request and each answer. 413: the body is too large. 422: what was sent is refused, with the
reason. 503: too many requests wait already; try again."""


class Service(Protocol):
    """What a replica offers to the routes."""

    engine: Engine

    async def draw(self, z: PartSequence) -> schemas.Drawing:
        """`Engine.draw` of one drawing (1, T), together with those of other requests."""
        ...

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` away from the event loop."""
        ...


REFUSED: dict[int | str, dict[str, Any]] = {
    413: {"model": schemas.Problem, "description": "Too large"},
    422: {"model": schemas.Problem, "description": "Refused, with the reason"},
    503: {"content": {"text/plain": {}}, "description": "Too many requests wait"},  # Ray Serve's own answer
}


def build_app(service: Callable[[], Service], hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The application; `service` is asked for at each request. hosts: what a request may call us."""
    app = FastAPI(
        title=TITLE,
        description=ABOUT,
        version=npdraw_dist.__version__,
        docs_url=None,  # FastAPI's own page loads its script from elsewhere
        redoc_url=None,
        responses=REFUSED,
    )
    _add_pages(app)
    _add_readers(app, service)
    _add_makers(app, service)
    _add_editors(app, service)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Guard)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """One line; what was sent is not repeated, for it may be anything."""
    assert isinstance(error, RequestValidationError)
    items = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
        for item in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(items[:5])}, 422)


async def _checked(service: Service, function: Callable[..., Any], *arguments: Any) -> Any:
    """`run`, with a ValueError as the answer 422."""
    try:
        return await service.run(function, *arguments)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def editor() -> HTMLResponse:
        page = editor_page()
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        page = reference_page(app.openapi())
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


def _add_readers(app: FastAPI, service: Callable[[], Service]) -> None:
    @app.get("/healthz", summary="Whether the server answers")
    async def healthz() -> schemas.Health:
        return schemas.Health(version=npdraw_dist.__version__)

    @app.get("/model", summary="The sizes of the model: image, canvas, grid of places, bank")
    async def model() -> schemas.ModelFacts:
        return service().engine.facts()

    @app.get("/bank", summary="All parts of the bank in one picture")
    async def bank() -> schemas.Bank:
        return service().engine.bank()


def _add_makers(app: FastAPI, service: Callable[[], Service]) -> None:
    @app.post("/sample", summary="A drawing of the prior, by seed and temperature")
    async def sample(request: schemas.SampleRequest) -> schemas.Drawing:
        here = service()
        return await here.draw(await here.run(here.engine.sample, request.seed, request.temperature))

    async def encode(images: Any) -> schemas.Encoded:
        here = service()
        drawing = await here.draw(await here.run(here.engine.encode, images))
        return here.engine.original(images, drawing)

    @app.post("/encode", summary="The most likely drawing of a picture that is sent")
    async def upload(
        file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, BMP or GIF, at most 8 MiB")],
        invert: Annotated[bool, Query(description="dark ink on white becomes bright on black")] = False,
    ) -> schemas.Encoded:
        here = service()
        return await encode(await _checked(here, here.engine.upload, await file.read(), invert))

    @app.get(
        "/test/{index}",
        summary="The most likely drawing of an image of the model's test set",
        responses={404: {"model": schemas.Problem, "description": "No such image"}},
    )
    async def test(index: Annotated[int, Path(ge=0, lt=2**31)]) -> schemas.Encoded:
        here = service()
        try:
            images = await here.run(here.engine.test_image, index)
        except IndexError as error:
            raise HTTPException(404, str(error)) from None
        return await encode(images)


def _add_editors(app: FastAPI, service: Callable[[], Service]) -> None:
    @app.post("/decode", summary="Canvas and image of a drawing")
    async def decode(request: schemas.DecodeRequest) -> schemas.Drawing:
        here = service()
        return await here.draw(await _checked(here, here.engine.z_of, request.z))

    @app.post("/compose", summary="B's parts at some places, on A's canvas")
    async def compose(request: schemas.ComposeRequest) -> schemas.Drawing:
        here = service()
        z, dropped = await _checked(here, here.engine.compose, request)
        return (await here.draw(z)).model_copy(update={"dropped": dropped})

    @app.post("/edit", summary="A part put, removed, moved or swapped")
    async def edit(request: schemas.EditRequest) -> schemas.Drawing:
        here = service()
        z, dropped = await _checked(here, here.engine.edit, request)
        return (await here.draw(z)).model_copy(update={"dropped": dropped})

    @app.post("/steps", summary="The drawing step by step, as pictures")
    async def steps(request: schemas.DecodeRequest) -> schemas.Frames:
        here = service()
        z = await _checked(here, here.engine.z_of, request.z)
        frames: schemas.Frames = await here.run(here.engine.frames, z)
        return frames

    @app.post(
        "/steps.gif",
        summary="The drawing step by step, as an animation",
        response_class=Response,
        responses={200: {"content": {"image/gif": {}}, "description": "A GIF"}},
    )
    async def animation(request: schemas.DecodeRequest) -> Response:
        here = service()
        z = await _checked(here, here.engine.z_of, request.z)
        return Response(await here.run(here.engine.gif, z), media_type="image/gif")
