"""What a Ray Train worker does in which order, with Ray Train replaced by a list of calls."""

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from npdraw_dist.training import checkpoint, context
from npdraw_dist.training.context import SAVE_EVERY_S, RayContext

Calls = list[tuple[Any, ...]]


def worker(calls: Calls, rank: int = 0, watched: bool = True, others: float = 0.0) -> RayContext:
    """One of two ranks. others: what the other rank adds to each sum."""
    made = object.__new__(RayContext)
    made.rank, made.world_size = rank, 2
    made.criterion = checkpoint.Criterion("valid/nll", "min")
    made._watched, made._saved_at = watched, -SAVE_EVERY_S
    made.events = SimpleNamespace(add=lambda row: None)  # type: ignore[assignment]
    made.rows = SimpleNamespace(add=lambda row: calls.append(("row", row)))  # type: ignore[assignment]
    made._train = SimpleNamespace(
        Checkpoint=SimpleNamespace(from_directory=str),
        report=lambda metrics, checkpoint, checkpoint_dir_name: calls.append(
            ("report", metrics, checkpoint, checkpoint_dir_name)
        ),
    )
    made.display = SimpleNamespace(  # type: ignore[assignment]
        say=lambda line: calls.append(("say", line)), record=lambda row: calls.append(("show", row))
    )

    def total(values: Tensor) -> Tensor:
        calls.append(("sum",))
        return values + others

    made.sum = total  # type: ignore[method-assign]
    return made


def test_a_row_is_written_before_its_checkpoint_by_rank_0_alone() -> None:
    """A kill in between repeats the row; the other way round it would lose it."""
    calls: Calls = []
    worker(calls).report({"step": 2}, Path("/saved"), "checkpoint_2")
    row = {"step": 2}
    assert [call for call in calls if call[0] != "show"] == [
        ("row", row),
        ("report", row, "/saved", "checkpoint_2"),
    ]
    assert ("show", row) in calls
    calls.clear()
    worker(calls, rank=1).report({"step": 2}, None, "checkpoint_2")
    assert calls == [("report", {"step": 2}, None, "checkpoint_2")]


def test_a_checkpoint_between_two_validations_has_no_row() -> None:
    calls: Calls = []
    worker(calls).save(Path("/saved"), "checkpoint_3")
    ((_, metrics, *rest),) = calls
    assert rest == ["/saved", "checkpoint_3"]
    assert list(metrics) == ["valid/nll"]
    assert math.isnan(metrics["valid/nll"])  # the worst for Ray Train, which takes a missing one for the best


def test_a_line_is_said_once_for_all_ranks() -> None:
    calls: Calls = []
    for rank in range(2):
        worker(calls, rank).say("a line")
    assert calls == [("say", "a line")]


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

        made._collective = SimpleNamespace(broadcast_from_rank_zero=broadcast)
        found = made.restore(lambda folder: {})
        assert found is not None
        assert (found.progress, found.generation) == ({}, 1)
    assert calls == [("say", "damaged, not used: checkpoint_8: broken; begins anew")]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, and whether Ray has told the worker of a drained node."""
    world = SimpleNamespace(s=100.0, told=False)
    monkeypatch.setattr(time, "monotonic", lambda: world.s)
    monkeypatch.setattr(context, "_told_of_preemption", lambda: world.told)
    return world


def test_a_notice_makes_a_checkpoint_at_once_and_then_in_intervals(now: SimpleNamespace) -> None:
    rank = worker([])
    assert not rank.must_save()
    now.told = True
    due = []
    for second in range(60):
        now.s = 100.0 + second
        if rank.must_save():
            due.append(second)
    assert due == [0, SAVE_EVERY_S, 2 * SAVE_EVERY_S]


@pytest.mark.parametrize("told", [False, True])
def test_rank_0_decides_for_all(told: bool, now: SimpleNamespace) -> None:
    """Ray tells the ranks at different moments; all have to save in the same step."""
    now.told = told
    assert not worker([], rank=1, others=0.0).must_save()
    assert worker([], rank=1, others=1.0).must_save()


def test_where_nobody_drains_nodes_the_ranks_are_not_asked(now: SimpleNamespace) -> None:
    calls: Calls = []
    now.told = True
    assert not worker(calls, watched=False).must_save()
    assert calls == []


def test_the_watchers_signal_is_read_from_ray_train() -> None:
    """From where Ray Train's worker keeps it; Ray Train has to keep the name."""
    from ray.train.v2._internal.execution import context as ray_context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    before = ray_context._train_context
    kept = PreemptionContext()
    try:
        ray_context._train_context = SimpleNamespace(preemption_context=kept)  # type: ignore[assignment]
        assert not context._told_of_preemption()
        kept.preemption_info = SimpleNamespace()  # type: ignore[assignment]
        assert context._told_of_preemption()
    finally:
        ray_context._train_context = before
