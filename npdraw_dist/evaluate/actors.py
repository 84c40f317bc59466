"""What a pool of actors measures of a model: bounds on log p(x) of a split, and distances of samples.

Shapes: N real images, M generated ones, D features, K parts of the bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import to_float
from npdraw_dist.evaluate.pools import (
    ActorPool,
    BatchKey,
    PoolActor,
    Result,
    ShardSlice,
    Work,
    in_batch_order,
)
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.distances import all_distances, require_enough
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.scores import Numbers, bank_usage, part_counts, score_images, summary
from npdraw_dist.training.feed import noise_seed

SAMPLES = 64  # samples of a batch, which has noise of its own seed
REAL, GENERATED = 2**32 - 3, 2**32 - 4  # keep the seeds apart


class ScoreActor(PoolActor):
    """The scores of each image of its batches."""

    def __init__(self, model: GenerativeModel, k: int, seed: int) -> None:
        super().__init__()
        self.model = model.to(self.device)
        self.k, self.seed = k, seed

    def __call__(self, item: ShardSlice) -> Result:
        scores, counts, images = {}, {}, 0
        rows = self.rows(item.shard)
        for key, batch in item.batches(rows):
            found = score_images(self.model, batch, self.k, self.seed, *key)
            scores[key] = {name: values.numpy() for name, values in found.items()}
            if isinstance(self.model, NPDraw):
                counts[key] = part_counts(self.model, batch, self.seed, *key).numpy()
            images += len(batch)
        rejects = len(rows.rejects) if item.first == 0 else 0
        ids = item.ids(rows)
        return {"images": images, "scores": scores, "counts": counts, "rejects": rejects, "ids": ids}


def likelihood(
    model: GenerativeModel, work: Work, k: int, seed: int, pool: ActorPool
) -> tuple[Numbers, list[str]]:
    """The `summary` of the images of `work`, the use of the bank, and `rejected`, the unreadable rows.

    Also the ids of the images, sorted.
    """
    results = pool.run("evaluate", work.slices, work.images, ScoreActor, model, k, seed)
    scores = in_batch_order(results, "scores")
    if not scores:
        raise UserError("the split has no image")
    values = {name: torch.cat([torch.from_numpy(part[name]) for part in scores]) for name in scores[0]}
    channels, height, width = model.spec.image_shape
    numbers = summary(values, k, channels * height * width)
    numbers["rejected"] = sum(result["rejects"] for result in results)
    counts = in_batch_order(results, "counts")
    if counts:
        numbers |= bank_usage(torch.stack([torch.from_numpy(part) for part in counts]).sum(0))
    return numbers, sorted(name for result in results for name in result["ids"])


@dataclass(frozen=True)
class SampleBatch:
    """The `number`-th batch, of `count` samples: an item for an actor."""

    number: int
    count: int


class FeatureActor(PoolActor):
    """Features of real images, as the model takes them, and of samples that it draws.

    settings.pixels: `drawn` binarizes real images and draws samples from p(x|z), `mean` does neither.
    """

    def __init__(self, model: GenerativeModel, file: ExtractorFile, settings: EvaluationSettings) -> None:
        super().__init__()
        self.model = model.to(self.device)
        self.extract, self.settings = file.open(self.device), settings

    def __call__(self, item: ShardSlice | SampleBatch) -> Result:
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
    count: int,
    file: ExtractorFile,
    settings: EvaluationSettings,
    pool: ActorPool,
) -> dict[str, Any]:
    """Frechet and kernel distance, precision and recall of `count` samples to the images of `work`."""
    batches = [
        SampleBatch(number, min(SAMPLES, count - start))
        for number, start in enumerate(range(0, count, SAMPLES))
    ]
    items = [*work.slices, *batches]
    total = work.images + count
    results = pool.run("distance", items, total, FeatureActor, model, file, settings)
    real, generated = _features(results, "real"), _features(results, "generated")
    require_enough(len(real), len(generated), real.shape[1])
    found = all_distances(real, generated, settings.seed)
    fid = {"fid": found["frechet_distance"], "kid": found["kernel_distance"]} if file.is_inception else {}
    return {
        "distance": "FID" if file.is_inception else f"Frechet distance of {file.name}",
        **found,
        **fid,
        "n_real": len(real),
        "n_generated": len(generated),
        "features": real.shape[1],
    }


def _features(results: Sequence[Result], name: str) -> Tensor:
    return torch.cat([torch.from_numpy(part) for part in in_batch_order(results, name)])
