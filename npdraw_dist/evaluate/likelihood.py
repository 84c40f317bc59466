"""Bounds on log p(x) of a split, scored by a pool of actors.

Shapes: N images, K parts of the bank.
"""

from typing import Any

import ray
import torch

from npdraw_dist.core.errors import UserError
from npdraw_dist.evaluate.pools import Pool, Portion, Work, Worker, in_order
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.scores import bank_usage, part_counts, score_images, summary


class Score(Worker):
    """An actor: the numbers of each image of its batches."""

    def __init__(self, model: list[ray.ObjectRef[GenerativeModel]], k: int, seed: int) -> None:
        super().__init__()
        self.model = ray.get(model[0]).to(self.device)
        self.k, self.seed = k, seed

    def work(self, item: Portion) -> dict[str, Any]:
        scores, counts, images = {}, {}, 0
        for place, batch in item.batches(self.rows(item.shard)):
            found = score_images(self.model, batch, self.k, self.seed, *place)
            scores[place] = {name: values.numpy() for name, values in found.items()}
            if isinstance(self.model, NPDraw):
                counts[place] = part_counts(self.model, batch, self.seed, *place).numpy()
            images += len(batch)
        rejects = len(self.rows(item.shard).rejects) if item.part == 0 else 0
        return {"images": images, "scores": scores, "counts": counts, "rejects": rejects}


def likelihood(model: GenerativeModel, work: Work, k: int, seed: int, pool: Pool) -> dict[str, Any]:
    """The `summary` of the images of `work`, how the bank is used, and how many rows were unreadable."""
    found = pool.run("evaluate", work.portions, work.images, Score, [ray.put(model)], k, seed)
    scores = in_order(found, "scores")
    if not scores:
        raise UserError("the split has no image")
    values = {name: torch.cat([torch.from_numpy(part[name]) for part in scores]) for name in scores[0]}
    channels, height, width = model.spec.image_shape
    numbers = summary(values, k, channels * height * width)
    numbers["rejected"] = sum(result["rejects"] for result in found)
    counts = in_order(found, "counts")
    if counts:
        numbers |= bank_usage(torch.stack([torch.from_numpy(part) for part in counts]).sum(0))
    return numbers
