"""Distances between a model's samples and the images of a split, with features made by a pool of actors.

Shapes: N real images, M generated ones, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.core.images import to_float
from npdraw_dist.evaluate.pools import (
    ActorPool,
    BatchKey,
    PoolActor,
    Result,
    ShardSlice,
    Work,
    in_batch_order,
    shared,
)
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.distances import (
    frechet_distance,
    kernel_distance,
    precision_recall,
    require_enough,
)
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.training.feed import noise_seed

SAMPLES = 64  # samples of a batch, which has noise of its own seed
REAL, GENERATED = 2**32 - 3, 2**32 - 4  # keep the seeds apart


@dataclass(frozen=True)
class SampleBatch:
    """The `number`-th batch, of `count` samples: an item for an actor."""

    number: int
    count: int


class FeatureActor(PoolActor):
    """Features of real images, as the model takes them, and of samples that it draws.

    settings.pixels: `drawn` binarizes real images and draws samples from p(x|z), `mean` does neither.
    """

    def __init__(self, model: list[Any], file: ExtractorFile, settings: EvaluationSettings) -> None:
        super().__init__()
        self.model = shared(model).to(self.device)
        self.extract, self.settings = file.open(self.device), settings

    def work(self, item: ShardSlice | SampleBatch) -> Result:
        if isinstance(item, SampleBatch):
            features = {(0, item.number): self.extract(self._sample(item)).numpy()}
            return {"images": item.count, "real": {}, "generated": features}
        real = {
            key: self.extract(self._real(key, batch)).numpy()
            for key, batch in item.batches(self.rows(item.shard))
        }
        return {"images": sum(map(len, real.values())), "real": real, "generated": {}}

    def _sample(self, item: SampleBatch) -> Tensor:
        draw = self.model.sample_pixels if self.settings.pixels == "drawn" else self.model.sample
        return draw(item.count, self._generator(GENERATED, item.number), self.settings.temperature)

    def _real(self, key: BatchKey, batch: Tensor) -> Tensor:
        batch = batch.to(self.device)
        if self.settings.pixels == "mean":
            return to_float(batch)
        return binarized(batch, self.model.spec.binarize, self._generator(REAL, *key))

    def _generator(self, *key: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(noise_seed(self.settings.seed, *key))


def distances(
    model: GenerativeModel,
    work: Work,
    samples: int,
    file: ExtractorFile,
    settings: EvaluationSettings,
    pool: ActorPool,
) -> dict[str, Any]:
    """Frechet and kernel distance, precision and recall of `samples` samples to the images of `work`."""
    batches = [
        SampleBatch(number, min(SAMPLES, samples - start))
        for number, start in enumerate(range(0, samples, SAMPLES))
    ]
    items = [*work.slices, *batches]
    total = work.images + samples
    results = pool.run("distance", items, total, FeatureActor, pool.share(model), file, settings)
    real, generated = _features(results, "real"), _features(results, "generated")
    require_enough(len(real), len(generated), real.shape[1])
    frechet = frechet_distance(real, generated)
    kernel, kernel_std = kernel_distance(real, generated, settings.seed)
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


def _features(results: Sequence[Result], name: str) -> Tensor:
    return torch.cat([torch.from_numpy(part) for part in in_batch_order(results, name)])
