"""The order of the calls of a Ray Train worker, with a list of calls in place of Ray Train."""

import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.distributed import context
from npdraw_dist.distributed.context import SAVE_EVERY_S, RayContext
from npdraw_dist.training import checkpoint

Calls = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes the change that `worker` makes to the module."""
    monkeypatch.setattr(context, "ray", context.ray)


def worker(calls: Calls, rank: int = 0, watched: bool = True, others: Any = 0.0) -> RayContext:
    """One of two ranks. others: what the other rank adds to each sum."""
    made = object.__new__(RayContext)
    made.rank, made.world_size = rank, 2
    made.criterion = checkpoint.Criterion("valid/nll", "min")
    made._watched, made._saved_at, made._looked_at = watched, -SAVE_EVERY_S, 0.0
    made._steps, made._gap = 0, 1
    made.events = SimpleNamespace(add=lambda row: None)  # type: ignore[assignment]
    made.rows = SimpleNamespace(add=lambda row: calls.append(("row", row)))  # type: ignore[assignment]
    train = SimpleNamespace(
        Checkpoint=SimpleNamespace(from_directory=str),
        CheckpointUploadMode=SimpleNamespace(ASYNC="beside", SYNC="at once"),
        report=lambda metrics, checkpoint=None, checkpoint_dir_name="", **how: calls.append(
            ("report", metrics, checkpoint, checkpoint_dir_name, how.get("checkpoint_upload_mode"))
        ),
        collective=SimpleNamespace(),
    )
    context.ray = SimpleNamespace(train=train)  # type: ignore[assignment]
    made.display = SimpleNamespace(  # type: ignore[assignment]
        say=lambda line: calls.append(("say", line)), record=lambda row: calls.append(("show", row))
    )

    def total(values: Tensor) -> Tensor:
        calls.append(("sum",))
        return values + others

    made.sum = total  # type: ignore[method-assign]
    return made


def test_a_row_is_written_before_its_checkpoint_by_rank_0_alone() -> None:
    """A kill between the two repeats the row. In the other order the row would be lost.

    A checkpoint between two validations gets the worst score, since Ray Train ranks a missing score best and
    cannot read a NaN that it wrote.
    """
    worst = {"valid/nll": sys.float_info.max}
    calls: Calls = []
    worker(calls).report({"step": 2}, Path("/saved"), "checkpoint_2")
    assert calls[0] == ("row", {"step": 2})
    # A callback of the user, which may end the training, sees the row once the checkpoint is there.
    assert calls[-2:] == [
        ("report", {"step": 2}, "/saved", "checkpoint_2", "beside"),
        ("show", {"step": 2}),
    ]
    calls.clear()
    worker(calls, rank=1).report({"step": 2}, None, "checkpoint_2")
    assert calls == [("report", {"step": 2}, None, "checkpoint_2", None)]
    calls.clear()
    worker(calls).save(Path("/saved"), "checkpoint_3")  # after a notice, so its node goes
    assert calls == [("report", worst, "/saved", "checkpoint_3", "at once")]
    calls.clear()
    worker(calls, rank=1).report({"step": 2, "valid/nll": math.nan}, None, "checkpoint_2")
    assert calls == [("report", {"step": 2, **worst}, None, "checkpoint_2", None)]


def test_the_ranks_begin_anew_together_if_the_first_checkpoint_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(*_: Any) -> None:
        error = checkpoint.FirstDamaged("checkpoint_8: broken")
        error.generation = 1
        raise error

    monkeypatch.setattr(checkpoint, "by_age", lambda *_: [])
    monkeypatch.setattr(checkpoint, "first_readable", damaged)
    calls: Calls = []
    sent: list[Any] = []
    for rank in (0, 1):
        made = worker(calls, rank)
        made.filesystem, made.folder = None, ""  # type: ignore[assignment]

        def broadcast(value: Any, rank: int = rank) -> Any:
            sent.extend([value] if rank == 0 else [])
            return sent[0]

        context.ray.train.collective.broadcast_from_rank_zero = broadcast
        found = made.restore(lambda folder: {})
        assert found is not None
        assert (found.progress, found.generation) == ({}, 1)
    assert calls == [("say", "a damaged checkpoint is not used: checkpoint_8: broken; training begins anew")]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time."""
    world = SimpleNamespace(s=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: world.s)
    return world


def notify(rank: RayContext, ranks: list[int] | None) -> list[float]:
    """Ray has a notice for the node of `ranks`, if any. Returns the times at which a rank looks."""
    looks: list[float] = []

    def info() -> Any:
        looks.append(time.monotonic())
        return None if ranks is None else SimpleNamespace(preempted_ranks=ranks)

    context.ray.train.get_preemption_info = info
    return looks


@pytest.mark.parametrize("step_s", [0.01, 1.0, 30.0])
def test_a_notice_is_seen_in_seconds_and_saves_at_once_and_then_in_intervals(
    now: SimpleNamespace, step_s: float
) -> None:
    calls: Calls = []
    rank = worker(calls)
    notify(rank, None)
    while now.s < 200:
        assert not rank.must_save()
        now.s += step_s
    looks, saved = notify(rank, [1]), []
    start = now.s
    while now.s < start + 100:
        if rank.must_save():
            saved.append(now.s)
        now.s += step_s
    assert saved[0] - start <= max(5.0, step_s)
    assert all(SAVE_EVERY_S <= b - a <= SAVE_EVERY_S + max(5.0, step_s) for a, b in pairwise(saved))
    assert len(looks) <= 1 + 100 / min(2.0, max(step_s, 1.0))  # each asks all ranks
    assert calls.count(("say", "the node of rank 1 is about to be taken away; a checkpoint is saved")) == len(
        saved
    )


def test_rank_0_decides_for_all() -> None:
    """A notice reaches the ranks at different moments; all have to save and look again in the same step."""
    for due in (False, True):
        rank = worker([], rank=1, others=torch.tensor([float(due), 7.0]))
        looks = notify(rank, None if due else [1])
        assert rank.must_save() == due
        assert not any(rank.must_save() for _ in range(6))
        assert len(looks) == 1
        rank.must_save()
        assert len(looks) == 2
    calls: Calls = []
    rank = worker(calls, watched=False)
    looks = notify(rank, [0])
    assert not rank.must_save()  # where nobody drains nodes, no rank looks
    assert calls == looks == []
