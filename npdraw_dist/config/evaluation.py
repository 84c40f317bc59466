"""The settings of an evaluation: what is measured, on what, and how."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import dashed
from npdraw_dist.config.schema import AsNumber, DataConfig, ScaleConfig


class EvaluationSettings(BaseModel):
    model: str = Field(description="a model folder, such as runs/digits/model")
    split: Literal["train", "valid", "test"] = Field("test", description="the split")
    k: PositiveInt = Field(50, description="importance samples of the likelihood")
    images: PositiveInt | None = Field(None, description="images of the split at most, a seeded choice")
    samples: PositiveInt | None = Field(
        None, description="samples for the distance; as many as real images where not given"
    )
    fid_weights: str | None = dashed(None, "fid-weights", "file of Inception weights, for the FID")
    fid_features: Annotated[Literal[64, 192, 768, 2048], AsNumber] = dashed(
        2048, "fid-features", "which of its features; the FID of papers takes 2048"
    )
    extractor: str | None = Field(
        None, description="TorchScript file or module:attribute whose features measure a distance"
    )
    pixels: Literal["auto", "drawn", "mean"] = Field(
        "auto", description="samples as drawn from p(x|z) or its mean; auto: drawn where data is binary"
    )
    temperature: PositiveFloat = Field(1.0, description="of the prior, for the distance")
    seed: int = Field(0, ge=0, description="of splits, noise and samples; the run's where not given")
    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()


class ExtractorSettings(BaseModel):
    """The training of a classifier whose features measure distances."""

    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()
    seed: int = Field(0, ge=0, description="of splits, weights and batches")
    images: PositiveInt = Field(100_000, description="training budget in images")
    features: PositiveInt = Field(32, description="D; a covariance needs more images than that")
    out: str = Field(description="the TorchScript file to write, such as classifier.pt")
