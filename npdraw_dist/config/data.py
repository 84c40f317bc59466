"""The sections `data`, `grid`, `bank` and `parse`, which define the images and how they are parsed.

Symbols of the paper: T steps, K parts, P patch side.
"""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal, Self

from PIL import ImageColor
from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from npdraw_dist.config.registry import SOURCES, OrderName, SourceName
from npdraw_dist.config.section import AsNumber, ImageSize, NonNegative, RunHalf, Section, Share, sides
from npdraw_dist.core.grid_sizes import GridSizes

if TYPE_CHECKING:
    from npdraw_dist.core.grid import Grid

Binarize = Literal["none", "dynamic", "threshold"]
SHARD_BYTES, SHARD_ROWS = 8 << 20, 8192  # limits of a shard, so that one request reads it
LEAST_GLYPH = 8  # smallest side of an image of the source `fonts`, in pixels


def _require_colour(text: str) -> str:
    try:
        opaque = len(ImageColor.getrgb(text)) == 3
    except (ValueError, AttributeError):
        opaque = False
    if not opaque:
        raise ValueError(f"{text!r} is not an opaque colour; give one such as white or #ffcc00")
    return text


class DataRun(RunHalf):
    """Where the data are and how they are read. The images, not these settings, identify the data."""

    path: str | None = None
    """folder, pattern or URI of the data set; digits needs none"""
    cache_mb: NonNegative = 1024
    """training data up to this size are read into memory once; larger data are streamed, in another random
    order"""
    max_bad_fraction: Share = 0.01
    """a stage stops if a larger share of the rows is unreadable"""


class DataConfig(DataRun):
    source: SourceName = "digits"
    """the data set"""
    image_size: ImageSize | None = None
    """side of the images in pixels, or HEIGHTxWIDTH such as 48x64 (sources of your own images)"""
    fit: Literal["pad", "crop"] = "pad"
    """pad a picture to the shape of the images, or crop it to its centre (sources of your own images)"""
    channels: Annotated[Literal[1, 3], AsNumber] | None = None
    """1 for grey, 3 for colour (sources of your own images)"""
    background: Annotated[str, BeforeValidator(_require_colour)] = "white"
    """colour behind transparent or padded pictures (sources of your own images, and emoji)"""
    split_by: Literal["face", "character", "variant"] = "face"
    """what the splits hold out. face: families of faces (fonts), or an emoji with all its variants (emoji);
    character: characters in all faces (fonts); variant: single variants such as one skin tone (emoji)"""
    fraction: float = Field(1.0, gt=0, le=1)
    """share of the training images that is used; a larger share contains a smaller one"""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """share of the images held out for validation, if the source has no validation split"""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """share of the images held out for tests, if the source has no test split"""
    binarize: Binarize = "dynamic"
    """how grey images become binary. dynamic: by a new Bernoulli draw each time; threshold: by x > 0.5; none:
    not at all"""
    shard_rows: PositiveInt | None = None
    """images per shard; default: as many as fit in 8 MB, at most 8192"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        fixed = SOURCES[self.source].shape
        if fixed is not None:
            return fixed
        channels = SOURCES[self.source].channels or self.channels
        assert self.image_size is not None
        assert channels is not None
        return channels, *sides(self.image_size)

    @property
    def rows_a_shard(self) -> int:
        return self.shard_rows or max(min(SHARD_BYTES // math.prod(self.shape), SHARD_ROWS), 1)

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        known = SOURCES[self.source]
        own, channels = known.shape is None, known.channels
        if own and (self.image_size is None or (self.channels or channels) is None):
            unless = ", unless `npdraw prepare` wrote data.path" if known.prepared else ""
            needed = "data.image_size" if channels else "data.image_size and data.channels"
            raise ValueError(f"data.source {self.source} needs {needed}{unless}")
        if channels and self.channels not in (None, channels):
            raise ValueError(f"data.channels must be {channels} for data.source {self.source}")
        if not own and (self.image_size is not None or self.channels is not None):
            raise ValueError(
                f"data.source {self.source} fixes data.image_size and data.channels; leave them out"
            )
        if self.source == "fonts" and self.image_size is not None:
            height, width = sides(self.image_size)
            if height != width or height < LEAST_GLYPH:
                raise ValueError(
                    f"data.image_size is {self.image_size}; a glyph needs a square of {LEAST_GLYPH} or more"
                )
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("data.valid_fraction + data.test_fraction leave no training image; lower them")
        return self


class GridConfig(Section):
    patch: PositiveInt = 5
    """P, the side of a part in canvas pixels"""
    stride: PositiveInt = 5
    """distance between neighbouring places in canvas pixels, at most P"""
    downscale: PositiveInt = 1
    """side of the image divided by that of the canvas"""
    background: Literal["black", "white"] = "black"
    """colour of an empty canvas; white suits dark or coloured objects on white"""

    def sizes_of(self, image_shape: tuple[int, int, int], centred: bool = False) -> GridSizes:
        """The grid's sizes on the canvas for images (C, H, W). Raises ValueError if they do not fit.

        centred: places extend beyond all edges, as in the authors' code, not only on the right and below.
        """
        _, height, width = image_shape
        scale = self.downscale
        if height % scale or width % scale:
            raise ValueError(f"grid.downscale {scale} does not divide a {height}x{width} image")
        background = 1.0 if self.background == "white" else 0.0
        return GridSizes(height // scale, width // scale, self.patch, self.stride, centred, background)

    def of_canvas(self, image_shape: tuple[int, int, int], centred: bool = False) -> "Grid":
        """The grid of places on the canvas for images (C, H, W). Raises ValueError if sizes do not fit."""
        from npdraw_dist.core.grid import Grid  # imports torch, which takes seconds

        return Grid(**asdict(self.sizes_of(image_shape, centred)))


class BankRun(RunHalf):
    shards: PositiveInt = 1
    """number of Ray actors that share the clustering; with 1, a single process clusters"""


class BankConfig(BankRun):
    size: PositiveInt = 50
    """K, the number of parts"""
    max_patches: PositiveInt = 2_000_000
    """largest number of patches that are clustered; if there are more, the seed decides which"""
    min_energy: Share = 0.01
    """smallest mean square of a patch's ink; patches with a smaller one are left out"""


class ParseConfig(Section):
    steps: PositiveInt | None = None
    """T, the number of steps; default: the number of places of the grid"""
    order: OrderName = "aligned"
    """order of the steps"""
