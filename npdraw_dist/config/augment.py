"""Settings of the moved images of training. Parts of sections `train`, `prior` and `vae`."""

from typing import Annotated

from pydantic import Field

from npdraw_dist.config.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0)]


class Augmentation(Section):
    """Each move is drawn uniformly up to its limit, in both directions; a moved image is parsed anew."""

    augmented: Share = Field(
        0.0, description="share of the training images that are moved, of every kind of model"
    )
    shift: Size = Field(0.0, description="limit of a moved image's shift, pixels of each axis")
    rotate: Annotated[Size, Field(le=180)] = Field(0.0, description="limit of its rotation, degrees")
    stretch: Size = Field(0.0, description="limit of the logarithm of its stretching, of each axis")
    shear: Size = Field(0.0, description="limit of its shear, the slope of an upright line")
    mirror: Share = Field(0.0, description="chance that it is mirrored, left to right")
    whole_pixels: bool = Field(
        False, description="take the nearest pixel; a mirrored, shifted image then keeps its sharpness"
    )


class OwnAugmentation(Section):
    """Of one stage."""

    augmented: Annotated[float | None, Field(ge=0, le=1)] = Field(
        None,
        description="share of the images of this stage that are moved; if not given, train.augmented",
    )
    plain_images: Annotated[int, Field(ge=0)] = Field(
        0, description="images at the end of this stage's budget of which none is moved"
    )
