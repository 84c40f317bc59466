"""Bounds on log p(x) of a split, scored by a pool of actors. Shapes: N images, K parts of the bank."""

from typing import Any

import torch

from npdraw_dist.core.errors import UserError
from npdraw_dist.evaluate.pools import ActorPool, PoolActor, Result, ShardSlice, Work, in_batch_order, shared
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.scores import Numbers, bank_usage, part_counts, score_images, summary


class ScoreActor(PoolActor):
    """The scores of each image of its batches."""

    def __init__(self, model: list[Any], k: int, seed: int) -> None:
        super().__init__()
        self.model = shared(model).to(self.device)
        self.k, self.seed = k, seed

    def work(self, item: ShardSlice) -> Result:
        scores, counts, images = {}, {}, 0
        for key, batch in item.batches(self.rows(item.shard)):
            found = score_images(self.model, batch, self.k, self.seed, *key)
            scores[key] = {name: values.numpy() for name, values in found.items()}
            if isinstance(self.model, NPDraw):
                counts[key] = part_counts(self.model, batch, self.seed, *key).numpy()
            images += len(batch)
        rows = self.rows(item.shard)
        rejects = len(rows.rejects) if item.first == 0 else 0
        ids = item.ids(rows)
        return {"images": images, "scores": scores, "counts": counts, "rejects": rejects, "ids": ids}


def likelihood(
    model: GenerativeModel, work: Work, k: int, seed: int, pool: ActorPool
) -> tuple[Numbers, list[str]]:
    """The `summary` of the images of `work`, the use of the bank, and `rejected`, the unreadable rows.

    Also the ids of the images, sorted.
    """
    results = pool.run("evaluate", work.slices, work.images, ScoreActor, pool.share(model), k, seed)
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
