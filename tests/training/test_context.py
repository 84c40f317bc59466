"""What a Ray Train worker does in which order, with Ray Train replaced by a list of calls."""

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
    """A kill in between repeats the row; the other way round it would lose it.

    A checkpoint between two validations has none, and its score is NaN, the worst for Ray Train, which takes
    a missing one for the best.
    """
    calls: Calls = []
    worker(calls).report({"step": 2}, Path("/saved"), "checkpoint_2")
    assert calls[0] == ("row", {"step": 2})
    assert calls[-1] == ("report", {"step": 2}, "/saved", "checkpoint_2")
    calls.clear()
    worker(calls, rank=1).report({"step": 2}, None, "checkpoint_2")
    assert calls == [("report", {"step": 2}, None, "checkpoint_2")]
    calls.clear()
    worker(calls).save(Path("/saved"), "checkpoint_3")
    assert str(calls) == "[('report', {'valid/nll': nan}, '/saved', 'checkpoint_3')]"


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
    world = SimpleNamespace(s=100.0, told=True)
    monkeypatch.setattr(time, "monotonic", lambda: world.s)
    monkeypatch.setattr(context, "_told_of_preemption", lambda: world.told)
    return world


def test_a_notice_makes_a_checkpoint_at_once_and_then_in_intervals(now: SimpleNamespace) -> None:
    rank = worker([])
    now.told = False
    assert not rank.must_save()
    now.told = True
    due = []
    for second in range(60):
        now.s = 100.0 + second
        if rank.must_save():
            due.append(second)
    assert due == [0, SAVE_EVERY_S, 2 * SAVE_EVERY_S]


def test_rank_0_decides_for_all(now: SimpleNamespace) -> None:
    """Ray tells the ranks at different moments; all have to save in the same step."""
    assert not worker([], rank=1, others=0.0).must_save()
    now.told = False
    assert worker([], rank=1, others=1.0).must_save()
    calls: Calls = []
    assert not worker(calls, watched=False).must_save()  # where nobody drains nodes, no rank is asked
    assert calls == []
