"""Features of real images and of samples, both made by one pool of actors.

Shapes: N real images, M generated ones, D features.
"""

from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from npdraw_dist.core.images import to_float
from npdraw_dist.evaluate.pools import Place, Portion, Worker
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.objective import observe
from npdraw_dist.training.feed import noise_seed

REAL, GENERATED = 2**32 - 3, 2**32 - 4  # keep the seeds apart


@dataclass(frozen=True)
class Samples:
    """The `number`-th batch of `count` samples."""

    number: int
    count: int


class Features(Worker):
    """An actor: features of real images, as the model takes them, and of samples that it draws.

    pixels: `drawn` binarises the real images and draws samples from p(x|z), `mean` does neither.
    """

    def __init__(
        self,
        model: list[ray.ObjectRef[GenerativeModel]],
        file: ExtractorFile,
        seed: int,
        pixels: str,
        temperature: float,
    ) -> None:
        super().__init__()
        self.model = ray.get(model[0]).to(self.device)
        self.extract, self.seed = file.open(self.device), seed
        self.pixels, self.temperature = pixels, temperature

    def work(self, item: Portion | Samples) -> dict[str, Any]:
        real: dict[Place, Any] = {}
        generated: dict[Place, Any] = {}
        if isinstance(item, Samples):
            generated[0, item.number] = self.extract(self._drawn(item)).numpy()
            return {"images": item.count, "real": real, "generated": generated}
        images = 0
        for place, batch in item.batches(self.rows(item.shard)):
            real[place] = self.extract(self._seen(place, batch)).numpy()
            images += len(batch)
        return {"images": images, "real": real, "generated": generated}

    def _drawn(self, item: Samples) -> Tensor:
        draw = self.model.sample_pixels if self.pixels == "drawn" else self.model.sample
        return draw(item.count, self._seeded(GENERATED, item.number), self.temperature)

    def _seen(self, place: Place, batch: Tensor) -> Tensor:
        batch = batch.to(self.device)
        if self.pixels == "mean":
            return to_float(batch)
        return observe(batch, self.model.spec.binarize, self._seeded(REAL, *place))

    def _seeded(self, *place: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(noise_seed(self.seed, *place))
