"""What travels over HTTP. PNGs are base64 text, so that a page shows them without asking again.

Shapes: T steps, L places, K parts. The model's own limits are checked where its sizes are known.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_STEPS = 4096  # of any model; bounds what is parsed
SEEDS = 2**32

Index = Annotated[int, Field(ge=0, lt=2**31)]
Png = Annotated[str, Field(description="a PNG in base64", json_schema_extra={"contentEncoding": "base64"})]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Steps(Body):
    """A drawing z: T steps of whether, where and what. where and what are ignored where whether is false."""

    whether: list[bool] = Field(max_length=MAX_STEPS)
    where: list[Index] = Field(max_length=MAX_STEPS, description="places in raster order, below L")
    what: list[Index] = Field(max_length=MAX_STEPS, description="parts of the bank, below K")


class SampleRequest(Body):
    seed: int = Field(0, ge=0, lt=SEEDS)
    temperature: float = Field(1.0, gt=0, le=10, description="of the prior; low is cautious")


class DecodeRequest(Body):
    z: Steps


class ComposeRequest(Body):
    a: Steps
    b: Steps
    places: list[Index] = Field(max_length=MAX_STEPS, description="where B's parts replace A's")


class Put(Body):
    """The place holds this part and nothing else."""

    kind: Literal["put"]
    place: Index
    part: Index


class Remove(Body):
    """The places hold nothing."""

    kind: Literal["remove"]
    places: list[Index] = Field(max_length=MAX_STEPS)


class Move(Body):
    """What `source` holds goes to `target`."""

    kind: Literal["move"]
    source: Index
    target: Index


class Swap(Body):
    """Two places exchange what they hold."""

    kind: Literal["swap"]
    first: Index
    second: Index


class EditRequest(Body):
    z: Steps
    edit: Put | Remove | Move | Swap = Field(discriminator="kind")


class Drawing(BaseModel):
    """A drawing, its canvas and its decoded image."""

    z: Steps
    canvas: Png
    image: Png
    parts: int = Field(description="steps that draw")
    log_prior: float = Field(description="log p(z) in nats")
    dropped: int = Field(0, description="parts that gave way because all steps were taken")


class Encoded(Drawing):
    original: Png = Field(description="the image as the model saw it")


class Frame(BaseModel):
    """The drawing after a step; frame 0 is the empty canvas."""

    step: int = Field(description="1 to T; 0 before the first")
    place: int | None
    part: int | None
    canvas: Png
    image: Png


class Frames(BaseModel):
    frames: list[Frame] = Field(description="one for each step that draws, and the empty canvas first")


class Bank(BaseModel):
    """All parts in one picture, `columns` a row, `patch` pixels square, without gaps."""

    size: int
    patch: int
    columns: int
    sheet: Png


class ModelFacts(BaseModel):
    channels: int = Field(description="1 grey, 3 colour")
    image_height: int
    image_width: int
    canvas_height: int
    canvas_width: int
    rows: int = Field(description="of places")
    columns: int = Field(description="of places")
    patch: int
    stride: int
    steps: int
    parts: int
    order: str
    test_images: int = Field(description="0 where the model lies apart from its run")


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
