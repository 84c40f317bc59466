"""Features of real images and of samples, both made by the actors, and their distances.

Shapes: N real images, M generated ones, D features.
"""

from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from npdraw_dist.core.images import to_float
from npdraw_dist.dist.feed import noise_seed
from npdraw_dist.measure.distances import frechet_distance, kernel_distance, precision_recall, require_enough
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.objective import observe
from npdraw_dist.stages.evaluation.pools import Pool, Portion, Worker, in_order

SAMPLES = 64  # drawn at once, with noise of their own seed
REAL, GENERATED = 2**32 - 3, 2**32 - 4  # keep the seeds apart


class _Extractor(Worker):
    def __init__(self, model: ray.ObjectRef, file: ExtractorFile, seed: int, pixels: str) -> None:
        super().__init__()
        self.model = ray.get(model[0]).to(self.device)
        self.extract, self.seed, self.pixels = file.open(self.device), seed, pixels

    def seeded(self, *place: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(noise_seed(self.seed, *place))


class RealFeatures(_Extractor):
    """An actor: features of the images of its batches, binarised as the model takes them."""

    def work(self, item: Portion) -> dict[str, Any]:
        found, images = {}, 0
        for place, batch in item.batches(self.rows(item.shard)):
            x = to_float(batch.to(self.device))
            if self.pixels == "drawn":
                x = observe(batch.to(self.device), self.model.spec.binarize, self.seeded(REAL, *place))
            found[place] = self.extract(x).numpy()
            images += len(batch)
        return {"images": images, "features": found}


class GeneratedFeatures(_Extractor):
    """An actor: features of samples that it draws."""

    def __init__(
        self, model: ray.ObjectRef, file: ExtractorFile, seed: int, pixels: str, temperature: float
    ) -> None:
        super().__init__(model, file, seed, pixels)
        self.temperature = temperature

    def work(self, item: "Samples") -> dict[str, Any]:
        draw = self.model.sample_pixels if self.pixels == "drawn" else self.model.sample
        images = draw(item.count, self.seeded(GENERATED, item.number), self.temperature)
        return {"images": item.count, "features": {(item.number, 0): self.extract(images).numpy()}}


@dataclass(frozen=True)
class Samples:
    """The `number`-th batch of `count` samples."""

    number: int
    count: int


def distances(
    model: GenerativeModel,
    rows: list[dict[str, Any]],
    file: ExtractorFile,
    samples: int,
    pixels: str,
    temperature: float,
    seed: int,
    pool: Pool,
) -> dict[str, Any]:
    """Frechet and kernel distance, precision and recall of `samples` samples to the images of `rows`."""
    arguments = ([ray.put(model)], file, seed, pixels)
    real = _features(pool.run("real", rows, RealFeatures, *arguments))
    require_enough(len(real), samples, real.shape[1])
    batches = [
        Samples(number, min(SAMPLES, samples - start))
        for number, start in enumerate(range(0, samples, SAMPLES))
    ]
    todo = [{"item": batch, "images": batch.count} for batch in batches]
    generated = _features(pool.run("draw", todo, GeneratedFeatures, *arguments, temperature))
    frechet = frechet_distance(real, generated)
    kernel, kernel_std = kernel_distance(real, generated, seed)
    precision, recall = precision_recall(real, generated)
    return {
        "distance": "FID" if file.is_inception else f"Frechet distance of {file.name}",
        "frechet_distance": frechet,
        "kernel_distance": kernel,
        "kernel_distance_std": kernel_std,
        "precision": precision,
        "recall": recall,
        **({"fid": frechet, "kid": kernel} if file.is_inception else {}),
        "n_real": len(real),
        "n_generated": len(generated),
        "features": real.shape[1],
    }


def _features(found: list[dict[str, Any]]) -> Tensor:
    return torch.cat([torch.from_numpy(part) for part in in_order(found, "features")])
