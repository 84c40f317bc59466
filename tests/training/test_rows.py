"""The gradient of a step does not depend on its micro-batches or the number of workers."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.objective import Stepping
from npdraw_dist.core.parts import PartBank
from npdraw_dist.pipeline.stage_job import moves
from npdraw_dist.training import loop
from npdraw_dist.training.device import MicroBatch
from npdraw_dist.training.feed import MemoryFeed, Share
from npdraw_dist.training.loop import Run
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_presets import bank_of, batch_of, objective_of, tiny_preset

BATCH = 24
MOVED = {"augmented": 0.7, "shift": 2.0, "rotate": 10.0}
KINDS: dict[str, tuple[str, str, dict[str, Any], int]] = {  # stage, kind, settings, step
    "prior": ("prior", "npdraw", {"prior": {"dropout": 0.2}, "train": MOVED}, 3),
    "relaxed": ("vae", "npdraw", {"vae": {"latents": "map:2", "dropout": 0.2}, "train": MOVED}, 1),
    "hard": ("vae", "npdraw", {"vae": {"latents": "map:2", "dropout": 0.2, "draws": 2}}, 3),
    "vamp": ("vae", "vamp", {"vae": {"dropout": 0.2}}, 3),
    "vqvae": ("vae", "vqvae", {"vae": {"dropout": 0.2}}, 3),
    "draw": ("vae", "draw", {"vae": {"dropout": 0.2}}, 3),
    "air": ("vae", "air", {"vae": {"dropout": 0.2}}, 3),
}


def step(kind: str, micro: int | str, workers: int) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient and the losses of one step, of all workers together."""
    stage, model, changes, number = KINDS[kind]
    images = 4 * BATCH
    budget = {"images": images, "relaxed_images": images // 2, "plain_images": 0}
    own: dict[str, Any] = {name: dict(values) for name, values in changes.items()}
    own.setdefault("vae", {}).update(budget)
    own["prior"] = {**own.get("prior", {}), "images": images, "plain_images": 0}
    own["train"] = {**own.get("train", {}), "batch_size": BATCH, "micro_batch": micro}
    experiment: Experiment = with_changes(tiny_preset("mnist", model), own)
    gradients: list[dict[str, Tensor]] = []
    losses: list[Tensor] = []
    for rank in range(workers):
        context, objective = LocalContext(), objective_of(experiment, stage)
        context.rank, context.world_size = rank, workers
        objective.stepping = Stepping(clip=math.inf)  # type: ignore[misc]
        bank = PartBank(bank_of(experiment).parts) if model == "npdraw" else None
        run = Run(objective, experiment.train, 5, context, moves(experiment, bank, stage))
        run.optimizer.step = lambda *_: None  # type: ignore[method-assign]
        run.context.sum = lambda values: values  # type: ignore[method-assign]
        kept = run.meters.add

        def add(found: dict[str, Tensor], kept: Callable[[dict[str, Tensor]], None] = kept) -> None:
            losses.extend([found["loss"]] if "loss" in found else [])  # else it counts skipped steps
            kept(found)

        run.meters.add = add  # type: ignore[method-assign,assignment]
        feed = MemoryFeed(batch_of(experiment, 40), Share(BATCH, 5, rank, workers))
        run.update(number, next(feed.steps(number)), images)
        named = objective.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}  # as DDP
    return mean, torch.cat(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_workers_change_nothing(kind: str) -> None:
    """Gradients are compared, since Adam makes a whole step of weights from a gradient near zero."""
    whole, losses = step(kind, 64, 1)
    largest = max(float(value.abs().max()) for value in whole.values())
    for micro, workers in ((8, 1), (5, 1), (64, 2), (4, 3), (64, 5)):
        parts, found = step(kind, micro, workers)
        torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-3)
        assert parts.keys() == whole.keys()
        for name, value in parts.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-5 * largest, msg=name)


class Measured(MicroBatch):
    """Finds after its first micro-batch, as on a GPU, that more rows fit."""

    @contextmanager
    def computing(self, rows: int) -> Iterator[None]:
        yield
        self.rows = 9


def test_a_micro_batch_that_is_found_in_a_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, losses = step("hard", "auto", 1)
    monkeypatch.setattr(loop, "MicroBatch", Measured)
    parts, found = step("hard", 4, 2)
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-3)
    largest = max(float(value.abs().max()) for value in whole.values())
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-5 * largest, msg=name)
