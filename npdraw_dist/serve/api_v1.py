"""The paths that are under /v1 alone: proposals of the prior, pictures that are placed, and files to keep."""

from typing import Annotated

from fastapi import APIRouter, File, Query, UploadFile
from fastapi.responses import Response

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.serve import exports, schemas
from npdraw_dist.serve.service import REFUSED, Replica, Service, checked

router = APIRouter(responses=REFUSED)


async def _decoded(drawings: list[PartSequence], replica: Service) -> schemas.DrawingsResponse:
    return schemas.DrawingsResponse(drawings=await replica.run(replica.engine.decode, drawings))


# --------------------------------------------------------------------------------------- pictures


@router.post("/parse", summary="The drawing that the heuristic parser finds in a picture")
async def parse(request: schemas.ParseRequest, replica: Replica) -> schemas.EncodeResponse:
    z, original = await checked(replica, replica.engine.parse, request)
    return schemas.EncodeResponse(**(await replica.decode(z)).model_dump(), original=original)


@router.post("/encode", summary="The most likely drawing of an uploaded picture, placed by itself")
async def encode(
    file: Annotated[UploadFile, File(description="PNG, JPEG, WebP, BMP or GIF, at most 8 MiB")],
    replica: Replica,
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
    content = await file.read()
    image, placed = await checked(replica, replica.engine.place_upload, content, invert, crop == "auto")
    z, original = await replica.run(replica.engine.encode, image)
    placement = schemas.Placement(inverted=placed.inverted, cropped=list(placed.box), scaled=placed.scale)
    drawing = (await replica.decode(z)).model_dump()
    return schemas.PlacedResponse(**drawing, original=original, placement=placement)


# -------------------------------------------------------------------------------------- proposals


@router.post("/complete", summary="Drawings that keep some places, completed by the prior")
async def complete(request: schemas.CompleteRequest, replica: Replica) -> schemas.DrawingsResponse:
    return await _decoded(await checked(replica, replica.engine.complete, request), replica)


@router.post("/next", summary="Where the prior draws next, and the likeliest parts at a place")
async def next_part(request: schemas.NextRequest, replica: Replica) -> schemas.NextResponse:
    return await checked(replica, replica.engine.next_part, request)


@router.post("/interpolate", summary="From A to B, one place after another")
async def interpolate(request: schemas.InterpolateRequest, replica: Replica) -> schemas.DrawingsResponse:
    return await _decoded(await checked(replica, replica.engine.interpolate, request), replica)


@router.get("/gallery", summary="Drawings sampled from the prior")
async def gallery(
    replica: Replica,
    n: Annotated[int, Query(ge=1, le=32)] = 12,
    seed: Annotated[int, Query(ge=0, lt=schemas.SEEDS)] = 0,
    temperature: Annotated[float, Query(gt=0, le=10)] = 1.0,
) -> schemas.DrawingsResponse:
    return await _decoded(await replica.run(replica.engine.gallery, n, seed, temperature), replica)


@router.get("/examples", summary="Good drawings to begin with")
async def examples(replica: Replica) -> schemas.ExamplesResponse:
    return await replica.once(replica.engine.examples)


# ------------------------------------------------------------------------------------------ files


def _file(kind: str, what: str) -> dict[int | str, dict[str, object]]:
    """The documentation of an answer that is a file."""
    return {200: {"content": {kind: {}}, "description": what}}


def _download(content: bytes, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=headers)


@router.post(
    "/strip.png",
    summary="The drawing step by step, side by side",
    response_class=Response,
    responses=_file("image/png", "A PNG"),
)
async def strip(request: schemas.StripRequest, replica: Replica) -> Response:
    z = await checked(replica, replica.engine.sequence, request.z)
    content = await replica.run(replica.engine.strip, z, request.frames)
    return _download(content, "image/png", "steps.png")


async def _figure(
    request: schemas.FigureRequest, replica: Service, form: exports.Kind, kind: str
) -> Response:
    z = await checked(replica, replica.engine.sequence, request.z)
    content = await replica.run(replica.engine.figure, z, form, request.outlines)
    return _download(content, kind, f"drawing.{form}")


@router.post(
    "/drawing.svg",
    summary="Canvas and image as a vector file",
    response_class=Response,
    responses=_file("image/svg+xml", "An SVG"),
)
async def drawing_svg(request: schemas.FigureRequest, replica: Replica) -> Response:
    return await _figure(request, replica, "svg", "image/svg+xml")


@router.post(
    "/drawing.pdf",
    summary="Canvas and image as a vector file",
    response_class=Response,
    responses=_file("application/pdf", "A PDF"),
)
async def drawing_pdf(request: schemas.FigureRequest, replica: Replica) -> Response:
    return await _figure(request, replica, "pdf", "application/pdf")
