"""Our callbacks and policies in Ray Train's own controller, which runs here, without Ray and its workers.

The script of a test says what each poll of the workers finds, start by start.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pyarrow import fs
from ray._private import state as ray_state
from ray.exceptions import ActorDiedError
from ray.train import Checkpoint, PreemptionInfo, UserCallback, WorkerGroupError
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.scaling_policy.scaling_policy import ScalingPolicy
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.train.v2.api import data_parallel_trainer

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.training import controller, launch
from npdraw_dist.training.checkpoint import Criterion
from npdraw_dist.training.controller import CheckpointScalingPolicy
from npdraw_dist.training.launch import TrainRun, run_training
from npdraw_dist.training.workers import Workers

LOCAL = fs.LocalFileSystem()
Poll = Callable[[Path], WorkerGroupPollStatus]
DIED = "rank 0 died (its process was killed or crashed)"


def one(**values: Any) -> WorkerGroupPollStatus:
    return WorkerGroupPollStatus({0: WorkerStatus(**{"running": True, **values})})


def runs(folder: Path) -> WorkerGroupPollStatus:
    return one()


def dies(folder: Path) -> WorkerGroupPollStatus:
    return one(running=False, error=WorkerHealthCheckFailedError("failed", ActorDiedError()))


def fills_the_disk(folder: Path) -> WorkerGroupPollStatus:
    return one(running=False, error=OSError("no space left on device"))


def refuses(folder: Path) -> WorkerGroupPollStatus:
    return one(running=False, error=UserError("every checkpoint is damaged"))


# In place of the script of a start that fails.
NOT_PLACED = WorkerGroupStartupTimeoutError(1)
TOO_LARGE = InsufficientClusterResourcesError("Insufficient\nresources")
NOT_STARTED = WorkerGroupStartupFailedError("At least one of the worker actors failed")


def ends(folder: Path) -> WorkerGroupPollStatus:
    return one(running=False, return_value={"images": 1024})


def is_drained(folder: Path) -> WorkerGroupPollStatus:
    """Its node is about to be taken away, in a second."""
    return one(preemption_info=PreemptionInfo(int(time.time() * 1000) - 1, {"node": [0]}))


def is_taken(folder: Path) -> WorkerGroupPollStatus:
    """Its node was taken away without notice."""
    lost = ActorDiedError()
    lost._preempted = True
    return one(running=False, error=WorkerHealthCheckFailedError("failed", lost))


def saves(step: int, nll: float | None = 9.0, heard: bool = True) -> Poll:
    """A checkpoint of a step. nll: of its validation, if any. heard: the controller gets its report."""

    def poll(folder: Path) -> WorkerGroupPollStatus:
        checkpoint = folder / f"checkpoint_{step:09d}"
        checkpoint.mkdir(exist_ok=True)
        validated = {"step": step, "images_seen": step, "images_per_s": 1.0, "valid/nll": nll}
        found = {"valid/nll": math.nan} if nll is None else validated
        report = _TrainingReport(Checkpoint(str(checkpoint), LOCAL), found, False)
        return one(training_report=report if heard else None)

    return poll


class Group:
    """In place of Ray Train's worker group: plays the script of one start."""

    def __init__(self, script: list[Poll], folder: Path, workers: int, callbacks: Sequence[Any]) -> None:
        self.script, self.folder, self.workers = script, folder, workers
        self.callbacks = [callback for callback in callbacks if isinstance(callback, WorkerGroupCallback)]
        for callback in self.callbacks:
            callback.after_worker_group_start(self)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return 1  # one is scripted, however many there are

    def get_workers(self) -> list[None]:
        return [None] * self.workers

    def get_latest_poll_status(self) -> None:
        return None

    def get_worker_group_state(self) -> Any:
        return SimpleNamespace(num_workers=self.workers, start_time=float("-inf"))

    def poll_status(self, timeout: float) -> WorkerGroupPollStatus:
        status = self.script.pop(0)(self.folder)
        for callback in self.callbacks:
            callback.after_worker_group_poll_status(status)
        return status

    def shutdown(self) -> None:
        for callback in self.callbacks:
            callback.before_worker_group_shutdown(self)  # type: ignore[arg-type]


def mailbox_of(lines: list[str]) -> Any:
    return SimpleNamespace(say=SimpleNamespace(remote=lines.append))


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    """play(starts, scale, callbacks): what `run_training` returns or raises, and the lines."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this test needs no Ray")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda function: function)
    for name in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
        monkeypatch.setattr(ScalingPolicy, name, lambda self: None)
    lines: list[str] = []
    monkeypatch.setattr(launch, "start_mailbox", lambda: mailbox_of(lines))
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(launch, "_watch", lambda *_: None)
    monkeypatch.setattr(launch, "KEPT", 1)

    def played(
        starts: list[list[Poll] | Exception], scale: ScaleConfig, callbacks: Sequence[Any] = ()
    ) -> tuple[Any, list[str]]:
        scripts = iter(starts)

        class Controller(TrainController):
            class worker_group_cls:
                @staticmethod
                def create(train_run_context: Any, worker_group_context: Any, callbacks: Any) -> Group:
                    script = next(scripts)
                    if isinstance(script, Exception):
                        raise script
                    return Group(script, tmp_path / "prior", worker_group_context.num_workers, callbacks)

        def controlled(self: Any, **named: Any) -> Any:
            wanted = [c for c in named["callbacks"] if type(c).__module__.startswith("npdraw_dist")]
            wanted += [c for c in named["callbacks"] if isinstance(c, UserCallbackHandler)]

            async def run() -> Any:
                controller = Controller(**{**named, "callbacks": wanted})
                await controller.run()
                return controller.get_result()

            return asyncio.run(run())

        monkeypatch.setattr(
            data_parallel_trainer.DataParallelTrainer, "_initialize_and_run_controller", controlled
        )
        best = Criterion("valid/nll", "min")
        workers = Workers(scale.least_workers, scale.most_workers, 1, False)
        run = TrainRun(refuse, None, 1024, workers, scale, best, LOCAL, str(tmp_path), "prior", callbacks)
        (tmp_path / "prior").mkdir(exist_ok=True)
        try:
            return run_training(run, None), lines  # type: ignore[arg-type]  # nothing is displayed
        except (WorkerGroupError, UserError) as error:
            return error, lines
        finally:
            assert next(scripts, None) is None, "a start is left over"

    return played


Play = Callable[..., tuple[Any, list[str]]]


def test_failures_with_a_checkpoint_in_between_are_survived(play: Play) -> None:
    """Though only one in a row is allowed, and the controller heard of no checkpoint."""
    starts = [[saves(step, heard=False), dies] for step in (2, 4, 6, 8)]
    result, lines = play([*starts, [ends]], ScaleConfig(max_failures=1))
    assert result == {"images": 1024}
    assert lines == [f"workers restart: {DIED} (failure 1 of at most 1 without a new checkpoint)"] * 4


def test_failures_in_a_row_end_the_run_with_what_became_of_the_worker(play: Play) -> None:
    result, lines = play([[saves(2), dies], [runs, dies], [dies]], ScaleConfig(max_failures=2))
    assert isinstance(result, UserError)
    assert DIED in str(result)
    assert "--scale.max_failures 2" in str(result)
    assert [line.partition(":")[0] for line in lines] == ["workers restart", "workers restart", "stops"]


def test_a_storage_that_does_not_answer_is_no_progress(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(controller, "by_age", broken)
    result, _ = play([[saves(2), dies], [saves(4), dies]], ScaleConfig(max_failures=1))
    assert isinstance(result, UserError)


def test_without_a_limit_every_failure_is_survived(play: Play) -> None:
    result, lines = play([*([dies] for _ in range(5)), [ends]], ScaleConfig(max_failures=-1))
    assert result == {"images": 1024}
    assert lines == [f"workers restart: {DIED}"] * 5


@pytest.mark.parametrize(
    ("script", "most", "reason"),
    [
        ([fills_the_disk], 0, "its storage failed (no space left on device)"),
        (TOO_LARGE, 3, "Insufficient resources"),  # no autoscaler could place them
        ([refuses], 3, "every checkpoint is damaged"),
    ],
)
def test_what_no_restart_mends_ends_the_run_in_a_line(
    play: Play, script: Any, most: int, reason: str
) -> None:
    result, lines = play([script], ScaleConfig(max_failures=most))
    assert isinstance(result, UserError)
    assert reason in str(result)
    assert not any("restart" in line for line in lines)


def test_workers_that_fail_at_their_start_are_started_again(play: Play) -> None:
    result, (line,) = play([NOT_STARTED, [ends]], ScaleConfig())
    assert result == {"images": 1024}
    assert "At least one of the worker actors failed" in line


@pytest.fixture
def room_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster of one node with one CPU, of which none is free. It is said at once."""
    node = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "NodeID": "a", "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: {})
    monkeypatch.setattr(controller, "FIRST_S", 0.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("room_for_one")
def test_workers_that_are_not_placed_are_asked_for_again_and_what_they_lack_is_said(play: Play) -> None:
    result, lines = play([NOT_PLACED, NOT_PLACED, [ends]], ScaleConfig())
    assert result == {"images": 1024}
    why = "others hold what they need, and leave room for 0; free: 10.0.0.1: 0 of 1 CPU"
    assert lines == [f"waits for 1 worker of 1 CPU: {why}"]  # once in this minute


@pytest.mark.usefixtures("room_for_one")
def test_workers_that_can_never_be_placed_end_the_run(play: Play) -> None:
    result, lines = play([NOT_PLACED], ScaleConfig(num_workers=2))
    assert isinstance(result, UserError)
    assert "there is room for 1; nodes: 10.0.0.1: 1 CPU" in str(result)
    assert lines == []


def test_nodes_that_are_taken_away_do_not_count(play: Play) -> None:
    """With a notice, which is said once, or without."""
    with_notice: list[list[Poll]] = [[runs, is_drained, is_drained] for _ in range(2)]
    result, lines = play([*with_notice, [runs, is_taken], [ends]], ScaleConfig(max_failures=0))
    assert result == {"images": 1024}
    notice = "the node of rank 0 is about to be taken away; a checkpoint is saved"
    taken = "workers restart: the node of rank 0 was taken away"
    assert lines == [notice, taken] * 2 + ["workers restart: rank 0 lost: its node was taken away"]


def test_the_best_and_the_last_checkpoint_are_kept(play: Play, tmp_path: Path) -> None:
    """Also one between two validations, which has no score, until the next one."""
    found: list[list[int]] = []

    class Look(UserCallback):  # type: ignore[misc]
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            found.append(sorted(int(path.name[11:]) for path in (tmp_path / "prior").glob("checkpoint_0*")))

    polls = [saves(2), saves(4, nll=5.0), saves(6, nll=7.0), saves(7, nll=None), saves(8, nll=8.0)]
    play([[*polls, ends]], ScaleConfig(), callbacks=[Look()])
    assert found == [[2], [4], [4, 6], [4, 7], [4, 8]]
    snapshot = json.loads((tmp_path / "prior" / launch.SNAPSHOT).read_text())
    assert [item["checkpoint_dir_name"] for item in snapshot["checkpoint_results"]] == [
        "checkpoint_000000008",
        "checkpoint_000000004",
    ]


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster has room for one worker at the start, and for two from then on."""
    room = iter([1])
    monkeypatch.setattr(
        ElasticScalingPolicy, "_get_reserved_resources", lambda self: {"node": {"CPU": next(room, 2)}}
    )


@pytest.mark.usefixtures("growing")
def test_an_elastic_run_grows_at_a_checkpoint_of_a_validation(play: Play) -> None:
    result, lines = play(
        [[runs, saves(50, nll=None), runs, saves(100)], [runs, ends]], ScaleConfig(num_workers="1:2")
    )
    assert result == {"images": 1024}
    assert lines == ["workers restart: their number changes from 1 to 2"]


@pytest.mark.usefixtures("growing")
def test_an_elastic_run_does_not_grow_after_its_last_checkpoint(play: Play) -> None:
    """Ray Train's own policy would, and the figures of the stage were lost."""
    assert play([[runs, saves(1024), ends]], ScaleConfig(num_workers="1:2")) == ({"images": 1024}, [])


@pytest.mark.usefixtures("growing")
def test_an_elastic_run_keeps_its_claim_between_checkpoints(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's coordinator would give away after three minutes what is not asked for again."""
    asked: list[Any] = []
    monkeypatch.setattr(CheckpointScalingPolicy, "_maybe_send_resource_request", lambda self: asked.append(0))
    play([[runs, runs, runs, ends]], ScaleConfig(num_workers="1:2"))
    assert len(asked) >= 3
