"""Why workers restart, and after which failure they no longer do: the states of Ray Train's controller.

The states are made here; `tests/pipeline/test_faults.py` makes Ray Train make them.
"""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError
from ray.train import ControllerError, PreemptionError, PreemptionInfo, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.config import FailureConfig

from npdraw_dist.training.controller import Restarts, TooManyFailures, is_preemption, what_happened
from npdraw_dist.training.failures import first_cause

Make = Callable[..., Restarts]
RUNNING = state.RunningState()
NOTICE = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [0, 1], "b": [2]})


class Lines:
    """In place of the mailbox: what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self

    def remote(self, line: str) -> None:
        self.lines.append(line)


def died(text: str = "its worker process has died", preempted: bool = False) -> WorkerHealthCheckFailedError:
    """A worker that no longer answers."""
    error = ActorDiedError()
    error.error_msg, error._preempted = f"The actor is dead because {text}", preempted
    return WorkerHealthCheckFailedError("A worker health check failed.", error)


def group_error(**failures: Exception) -> WorkerGroupError:
    """rank_1=ERROR, ..."""
    return WorkerGroupError("text", {int(name.rpartition("_")[2]): error for name, error in failures.items()})


PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer\nmore")
SILENT = WorkerHealthCheckTimeoutError("hanging")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (group_error(rank_1=died()), "rank 1 died (its process was killed or crashed)"),
        (
            group_error(rank_0=PEER, rank_1=died(), rank_2=died()),
            "ranks 1, 2 died (its process was killed or crashed)",
        ),
        (group_error(rank_0=died("its node has died"), rank_1=PEER), "rank 0 lost: its node died"),
        (group_error(rank_0=died("x", preempted=True), rank_1=PEER), "rank 0 lost: its node was taken away"),
        (
            group_error(rank_0=WorkerHealthCheckFailedError("", OutOfMemoryError("low")), rank_1=PEER),
            "rank 0 died because memory ran out",
        ),
        (group_error(rank_0=PEER, rank_3=SILENT), "rank 3 did not answer in time (scale.timeout_s)"),
        (
            group_error(rank_0=WorkerHealthCheckFailedError("", ActorUnavailableError("away", None))),
            "rank 0 died (its process was killed or crashed)",
        ),
        (group_error(rank_0=ValueError("a\nb")), "rank 0 failed (ValueError: a)"),
        (PreemptionError(NOTICE), "the node of ranks 0, 1, 2 was taken away"),
    ],
)
def test_the_cause_is_named(error: Exception, line: str) -> None:
    """Not the peers that lost a connection to it."""
    assert what_happened(error) == line


def restarted(callback: Restarts, error: Any = None, before: Any = RUNNING) -> None:
    """The controller goes from `before` to a restart, and waits a bit for resources."""
    after = state.RestartingState(error or group_error(rank_0=died()))
    callback.after_controller_state_update(before, after)
    callback.after_controller_state_update(after, after)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(most, lines): the callback of a run in `tmp_path`."""

    def made(most: int, lines: Lines | None = None) -> Restarts:
        return Restarts(fs.LocalFileSystem(), str(tmp_path), most, lines or Lines())

    return made


def test_failures_in_a_row_end_the_run(make: Make) -> None:
    callback = make(2, lines := Lines())
    restarted(callback)
    restarted(callback)
    with pytest.raises(TooManyFailures):
        restarted(callback)
    what = "rank 0 died (its process was killed or crashed)"
    assert lines.lines == [
        f"workers restart: {what} (failure 1 of at most 2 without a new checkpoint)",
        f"workers restart: {what} (failure 2 of at most 2 without a new checkpoint)",
        f"stops: {what} (failure 3 without a new checkpoint; scale.max_failures is 2)",
    ]


def test_a_checkpoint_sets_the_count_back(make: Make, tmp_path: Path) -> None:
    """One that Ray Train has not heard of too, since its worker died at once."""
    callback = make(1)
    for step in range(5):
        restarted(callback)
        (tmp_path / f"checkpoint_{step:09d}").mkdir()
    restarted(callback)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(TooManyFailures):
        restarted(callback)


def test_a_storage_that_does_not_answer_is_no_progress(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("timed out")

    callback = make(1)
    restarted(callback)
    monkeypatch.setattr("npdraw_dist.training.controller.by_age", broken)
    with pytest.raises(TooManyFailures):
        restarted(callback)


def test_no_failure_is_survived_if_none_may_be(make: Make) -> None:
    with pytest.raises(TooManyFailures):
        restarted(make(0))


def test_without_a_limit_every_failure_is_survived(make: Make) -> None:
    callback = make(-1, lines := Lines())
    for _ in range(9):
        restarted(callback)
    assert lines.lines == ["workers restart: rank 0 died (its process was killed or crashed)"] * 9


def test_nodes_that_are_taken_away_do_not_count(make: Make) -> None:
    """With a notice, by an error of other ranks in between, or without a notice."""
    callback = make(0, lines := Lines())
    preempting = state.PreemptingState(NOTICE, time.time())
    callback.after_controller_state_update(RUNNING, preempting)
    callback.after_controller_state_update(preempting, state.PreemptingState(NOTICE, time.time()))
    restarted(callback, PreemptionError(NOTICE), preempting)
    restarted(callback, group_error(rank_1=PEER), preempting)
    restarted(callback, group_error(rank_1=PEER, rank_2=died("x", preempted=True)))
    assert lines.lines == [
        "the node of ranks 0, 1, 2 is about to be taken away; a checkpoint is saved",
        "workers restart: the node of ranks 0, 1, 2 was taken away",
        "workers restart: rank 1 failed (RuntimeError: [../gloo/transport/tcp/pair.cc:553] "
        "Connection closed by peer)",
        "workers restart: rank 2 lost: its node was taken away",
    ]


def scheduled(callback: Restarts, workers: int, before: Any) -> None:
    callback.after_controller_state_update(before, state.SchedulingState(ResizeDecision(workers, {})))


def test_a_change_of_the_number_of_workers_is_said(make: Make) -> None:
    callback = make(3, lines := Lines())
    scheduled(callback, 1, state.InitializingState())
    scheduled(callback, 2, state.ResizingState(ResizeDecision(2, {})))
    restarted(callback)
    scheduled(callback, 2, state.RestartingState(group_error(rank_0=died())))
    restarted(callback)
    scheduled(callback, 1, state.RestartingState(group_error(rank_0=died())))
    assert [line for line in lines.lines if "died" not in line] == [
        "workers restart: their number changes from 1 to 2",
        "their number changes from 2 to 1",
    ]


def test_workers_that_do_not_start_are_said(make: Make) -> None:
    callback = make(0, lines := Lines())
    error = ControllerError(WorkerGroupStartupFailedError("At least one of the worker actors failed"))
    callback.after_controller_state_update(RUNNING, state.ReschedulingState(error))
    (line,) = lines.lines
    assert line.startswith("workers did not start (WorkerGroupStartupFailedError: At least one of the worker")
    assert line.endswith("; again")


def test_what_workers_lack_that_are_not_placed_is_said_elsewhere(make: Make) -> None:
    """By `Waiting`, which knows it."""
    callback = make(0, lines := Lines())
    error = ControllerError(WorkerGroupStartupTimeoutError(2))
    callback.after_controller_state_update(RUNNING, state.ReschedulingState(error))
    assert lines.lines == []


def test_ray_train_ends_a_run_by_such_an_error_and_the_driver_finds_the_failure(make: Make) -> None:
    """The error travels by pickle; its cause is the error that Ray Train's own count would have raised."""
    failure = group_error(rank_0=ValueError("broken"))
    with pytest.raises(TooManyFailures) as caught:
        restarted(make(0), failure)
    error = ControllerError(caught.value)
    policy = DefaultFailurePolicy(FailureConfig(max_failures=-1))
    assert policy.make_decision(error) == FailureDecision.RAISE
    ended = first_cause(pickle.loads(pickle.dumps(error)), TooManyFailures)
    assert ended is not None
    assert isinstance(ended.cause, WorkerGroupError)
    assert str(ended.cause) == str(failure)
    assert first_cause(failure, TooManyFailures) is None


def test_a_failure_by_preemption_is_told_from_others() -> None:
    assert is_preemption(PreemptionError(NOTICE))
    assert is_preemption(group_error(rank_0=PEER, rank_1=died("x", preempted=True)))
    assert not is_preemption(group_error(rank_0=PEER, rank_1=died()))
