"""The bodies of HTTP requests and responses. Images are PNGs in base64, so a response can hold several.

Shapes: T steps, L places, K parts. `engine` checks requests against the sizes of the model.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from npdraw_dist.config.networks import ConditionName

MAX_STEPS = 4096  # limit for all models, so that requests are small
MAX_APPEARANCE = 2**18  # characters of base64

Index = Annotated[int, Field(ge=0, lt=2**31)]
Places = Annotated[list[Index], Field(max_length=MAX_STEPS)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Temperature = Annotated[float, Field(gt=0, le=10, description="at a lower temperature, drawings vary less")]
Choice = Literal["auto", "yes", "no"]
Crop = Literal["auto", "no"]
Condition = Annotated[str | None, Field(max_length=200, description="a class or words; null: anything")]
Guidance = Annotated[float, Field(ge=0, le=10, description="weight of the condition; 1: as in training")]
Png = Annotated[str, Field(description="a PNG in base64", json_schema_extra={"contentEncoding": "base64"})]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Latents(Request):
    """A drawing z: T steps of whether, where and what, and the details u that parts cannot express.

    A step's where and what are ignored if its whether is false.
    """

    whether: list[bool] = Field(max_length=MAX_STEPS)
    where: Places = Field(description="places in raster order, below L")
    what: list[Index] = Field(max_length=MAX_STEPS, description="parts of the bank, below K")
    u: str | None = Field(
        None,
        max_length=MAX_APPEARANCE,
        description="details such as slant or shade, float32 in base64; null: their mean given the canvas",
        json_schema_extra={"contentEncoding": "base64"},
    )


class SampleRequest(Request):
    """Seed, temperature and condition of a sample."""

    seed: Seed = 0
    temperature: Temperature | None = None
    condition: Condition = None
    guidance: Guidance | None = None


class GalleryRequest(SampleRequest):
    n: int = Field(12, ge=1, le=32, description="number of drawings")


class DecodeRequest(Request):
    z: Latents


class InterpolateRequest(Request):
    a: Latents
    b: Latents


class ComposeRequest(InterpolateRequest):
    places: Places = Field(description="the places where B's parts replace A's")


class Put(Request):
    """Replaces all parts of the place by this part."""

    kind: Literal["put"]
    place: Index
    part: Index


class Remove(Request):
    """Removes all parts at the places."""

    kind: Literal["remove"]
    places: Places


class Move(Request):
    """Moves the parts of the place `source` to `target`, whose own parts are removed."""

    kind: Literal["move"]
    source: Index
    target: Index


class Swap(Request):
    """Exchanges the parts of two places."""

    kind: Literal["swap"]
    first: Index
    second: Index


class EditRequest(DecodeRequest):
    edit: Put | Remove | Move | Swap = Field(discriminator="kind")


class CompleteRequest(SampleRequest, DecodeRequest):
    keep: Places = Field(description="places that stay as they are, also empty")
    sketch: Places = Field(
        [],
        description="places drawn by hand, whose parts are redrawn near their ink, or kept in a free order",
    )
    n: int = Field(4, ge=1, le=8, description="number of proposals")


class NextRequest(DecodeRequest):
    place: Index | None = Field(None, description="place of the returned parts; null: the likeliest one")
    n: int = Field(8, ge=1, le=32, description="largest number of parts in the response")


class ParseRequest(Request):
    image: Png
    invert: Choice = Field("auto", description="exchange dark and bright")
    z: Latents | None = Field(None, description="earlier drawing; its u is kept where the image is unchanged")


class StripRequest(DecodeRequest):
    frames: int = Field(
        8, ge=2, le=32, description="largest number of pictures; the last is the whole drawing"
    )


class FigureRequest(DecodeRequest):
    outlines: bool = Field(True, description="draw a frame around each part on the canvas")


class DrawingResponse(BaseModel):
    """A drawing, its canvas and its decoded image."""

    z: Latents
    canvas: Png
    image: Png
    parts: int = Field(description="number of steps that draw")
    log_prior: float = Field(description="log p(z) in nats")
    dropped: int = Field(0, description="number of parts that an edit removed because no step was left")


class EncodeResponse(DrawingResponse):
    original: Png = Field(description="the image that was encoded")


class Placement(BaseModel):
    """How an upload was converted to an image of the model's size."""

    inverted: bool
    cropped: Annotated[list[int], Field(min_length=4, max_length=4)] = Field(
        description="left, top, right, bottom of the crop in pixels of the upright upload or outside it"
    )
    scaled: float = Field(description="pixels of the image per pixel of the upload")


class PlacedResponse(EncodeResponse):
    placement: Placement


class DrawingsResponse(BaseModel):
    drawings: list[DrawingResponse]


class Example(BaseModel):
    name: str = Field(description="origin: a sample or a validation image, and its number")
    log_prior_per_part: float = Field(description="log p(z) in nats, divided by the number of parts")
    drawing: DrawingResponse


class ExamplesResponse(BaseModel):
    """Drawings that are likely for their number of parts and differ from each other."""

    examples: list[Example]


class PartChance(BaseModel):
    part: int
    probability: float = Field(description="given that a part is drawn at the place; all K sum to 1")


class NextResponse(BaseModel):
    """The next part according to the prior: its place, and the likeliest parts at one place.

    In a free order the next part is the part of the next step. In the order `aligned` the prior visits every
    place in turn, so each part that the prior adds is the next part with equal probability.
    """

    places: list[float] = Field(description="probability of each of the L places; these and `stop` sum to 1")
    stop: float = Field(description="probability that no part follows")
    parts: list[PartChance] = Field(description="the likeliest parts at `place`, likeliest first")
    place: int


class SurpriseResponse(BaseModel):
    """The negative log-probability of the drawing's steps under the prior, by place."""

    places: list[float] = Field(
        description="-log p in nats, for each of the L places, of the steps that draw there"
    )


class Frame(BaseModel):
    """The drawing after one of its steps; frame 0 is the empty canvas."""

    step: int = Field(description="1 to T; 0 for the empty canvas")
    place: int | None
    part: int | None
    canvas: Png
    image: Png


class StepsResponse(BaseModel):
    frames: list[Frame] = Field(description="the empty canvas, then the canvas after each step that draws")


class BankResponse(BaseModel):
    """All parts in one picture: `columns` in a row, each `patch` pixels square, without gaps."""

    size: int
    patch: int
    columns: int
    sheet: Png
    by_looks: list[int] = Field(description="the K parts in an order that puts similar ones near each other")


class ModelResponse(BaseModel):
    name: str = Field(description="name of the model's run or folder")
    hash: str = Field(description="hash of bank and settings, which drawings must match")
    source: str | None = Field(description="source of the training images; null if unknown")
    likelihood: str
    channels: int = Field(description="1 for grey, 3 for colour")
    image_height: int
    image_width: int
    canvas_height: int
    canvas_width: int
    rows: int = Field(description="rows of places")
    columns: int = Field(description="columns of places")
    patch: int = Field(description="side of a part in pixels")
    stride: int = Field(description="pixels from a place to the next")
    margin_top: int = Field(description="pixels of the first row of places above the canvas")
    margin_left: int = Field(description="pixels of the first column of places left of the canvas")
    steps: int = Field(description="T")
    parts: int = Field(description="K")
    order: str
    aligned: bool = Field(description="whether each place has a step, so that it holds at most one part")
    background: Literal["black", "white"] = Field(description="colour of the canvas where nothing is drawn")
    condition: ConditionName = Field(description="kind of the condition that the model takes")
    vocabulary: list[str] = Field(description="the classes or words that the model knows")
    temperature: float = Field(description="temperature of samples if a request gives none")
    guidance: float = Field(description="guidance of conditioned samples if a request gives none")
    test_images: int = Field(description="number of test images; 0 if the model is not in its run folder")


class HealthResponse(BaseModel):
    status: Literal["ok"] = "ok"
    version: str


class ErrorResponse(BaseModel):
    detail: str = Field(description="why the request was refused")
