"""The settings of an evaluation: what is measured, on which data, and how."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import dashed
from npdraw_dist.config.schema import AsNumber, DataConfig, ScaleConfig, Seed


class EvaluationSettings(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    model: str = Field(description="a run, such as runs/digits, its model folder, a URI or an id of the hub")
    split: Literal["train", "valid", "test"] = Field("test", description="the split to measure on")
    k: PositiveInt = Field(50, description="importance samples of the likelihood")
    images: PositiveInt | None = Field(
        None, description="at most so many images of the split, chosen by seed; if not given, all"
    )
    samples: PositiveInt | None = Field(
        None, description="samples for the distance; if not given, as many as real images"
    )
    fid_weights: str | None = dashed(None, "fid-weights", "file of Inception weights, for the FID")
    fid_features: Annotated[Literal[64, 192, 768, 2048], AsNumber] = dashed(
        2048, "fid-features", "number of Inception features; papers report the FID of 2048"
    )
    extractor: str | None = Field(
        None, description="TorchScript file or module:attribute whose features measure a distance"
    )
    pixels: Literal["auto", "drawn", "mean"] = Field(
        "auto", description="pixels of samples: drawn from p(x|z) or its mean; auto draws if data is binary"
    )
    temperature: PositiveFloat = Field(1.0, description="temperature of the prior, for the distance")
    seed: Seed = Field(0, description="seed of noise and samples; if not given, the run's")
    split_seed: Seed | None = dashed(
        None, "split-seed", "seed of the splits, for a model that does not state its own"
    )
    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()
