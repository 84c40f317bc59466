"""The settings of the classifier whose features measure distances; apart from it, since it imports torch."""

from pydantic import BaseModel, Field, PositiveInt

from npdraw_dist.config.schema import DataConfig, ScaleConfig, Seed


class ExtractorSettings(BaseModel):
    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()
    seed: Seed = Field(0, description="seed of splits, weights and batches")
    images: PositiveInt = Field(100_000, description="training budget in images")
    features: PositiveInt = Field(
        32, description="number of features D; a Frechet distance needs more than D images"
    )
    out: str = Field(description="the TorchScript file to write, such as classifier.pt")
