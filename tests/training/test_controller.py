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
from npdraw_dist.training.controller import Trainer
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


def is_not_placed(folder: Path) -> WorkerGroupPollStatus:
    """First in the script of a start: the cluster has no room for the workers."""
    raise AssertionError("there is no worker to poll")


def is_too_large(folder: Path) -> WorkerGroupPollStatus:
    """The same: the autoscaler could never make a cluster for the workers."""
    raise AssertionError("there is no worker to poll")


def ends(folder: Path) -> WorkerGroupPollStatus:
    return one(running=False, return_value={"images": 1024})


def is_drained(folder: Path) -> WorkerGroupPollStatus:
    """Its node is about to be taken away, in a second."""
    return one(preemption_info=PreemptionInfo(int(time.time() * 1000) - 1, {"node": [0]}))


def saves(step: int, nll: float = 9.0, heard: bool = True) -> Poll:
    """A checkpoint of a step; heard: Ray Train's controller gets its report."""

    def poll(folder: Path) -> WorkerGroupPollStatus:
        checkpoint = folder / f"checkpoint_{step:09d}"
        checkpoint.mkdir(exist_ok=True)
        found = {"step": step, "images_seen": step, "images_per_s": 1.0, "valid/nll": nll}
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


def start(script: list[Poll], folder: Path, workers: int, callbacks: Sequence[Any]) -> Group:
    if script[0] is is_not_placed:
        raise WorkerGroupStartupTimeoutError(workers)
    if script[0] is is_too_large:
        raise InsufficientClusterResourcesError("Insufficient\nresources")
    return Group(script, folder, workers, callbacks)


class Lines:
    """The mailbox and the display in one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self

    def remote(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    """play(starts, scale, images, callbacks): what `run_training` returns or raises, and the lines."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this test needs no Ray")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda function: function)
    for name in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
        monkeypatch.setattr(ScalingPolicy, name, lambda self: None)
    lines = Lines()
    monkeypatch.setattr(launch, "start_mailbox", lambda: lines)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(launch, "_watch", lambda *_: None)
    monkeypatch.setattr(launch, "KEPT", 1)

    def played(
        starts: list[list[Poll]], scale: ScaleConfig, images: int = 1024, callbacks: Sequence[Any] = ()
    ) -> tuple[Any, list[str]]:
        scripts = iter(starts)

        class Controller(TrainController):
            class worker_group_cls:
                @staticmethod
                def create(train_run_context: Any, worker_group_context: Any, callbacks: Any) -> Group:
                    folder = tmp_path / "prior"
                    return start(next(scripts), folder, worker_group_context.num_workers, callbacks)

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
        run = TrainRun(refuse, None, images, workers, scale, best, LOCAL, str(tmp_path), "prior", callbacks)
        (tmp_path / "prior").mkdir(exist_ok=True)
        try:
            return run_training(run, lines), lines.lines  # type: ignore[arg-type]
        except (WorkerGroupError, UserError) as error:
            return error, lines.lines
        finally:
            assert next(scripts, None) is None, "a start is left over"

    return played


Play = Callable[..., tuple[Any, list[str]]]


def test_a_run_without_faults_says_nothing(play: Play) -> None:
    assert play([[runs, saves(2), ends]], ScaleConfig()) == ({"images": 1024}, [])


def test_failures_with_a_checkpoint_in_between_are_survived(play: Play) -> None:
    """Though only one in a row is allowed, and the controller heard of no checkpoint."""
    starts = [[saves(step, heard=False), dies] for step in (2, 4, 6, 8)]
    result, lines = play([*starts, [ends]], ScaleConfig(max_failures=1))
    assert result == {"images": 1024}
    assert lines == [f"workers restart: {DIED} (failure 1 of at most 1 without a new checkpoint)"] * 4


def test_failures_in_a_row_end_the_run_with_what_became_of_the_worker(play: Play) -> None:
    result, lines = play([[saves(2), dies], [runs, dies], [dies]], ScaleConfig(max_failures=2))
    assert isinstance(result, UserError)
    assert f"stage prior stopped: {DIED}, and --scale.max_failures 2" in str(result)
    assert [line.partition(":")[0] for line in lines] == ["workers restart", "workers restart", "stops"]


def test_a_full_disk_is_still_told_in_a_line(play: Play) -> None:
    result, _ = play([[fills_the_disk]], ScaleConfig(max_failures=0))
    assert isinstance(result, UserError)
    assert "stage prior stopped because its storage failed (no space left on device)" in str(result)


@pytest.fixture
def room_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster of one node with one CPU, of which none is free. It is said at once."""
    node = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "NodeID": "a", "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: {})
    monkeypatch.setattr(controller, "FIRST_S", 0.0)


@pytest.mark.usefixtures("room_for_one")
def test_workers_that_are_not_placed_are_asked_for_again_and_what_they_lack_is_said(play: Play) -> None:
    result, lines = play([[is_not_placed], [is_not_placed], [ends]], ScaleConfig())
    assert result == {"images": 1024}
    why = "others hold what they need, and leave room for 0; free: 10.0.0.1: 0 of 1 CPU"
    assert lines == [f"waits for 1 worker of 1 CPU: {why}"]  # once in this minute


@pytest.mark.usefixtures("room_for_one")
def test_workers_that_can_never_be_placed_end_the_run(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result, lines = play([[is_not_placed]], ScaleConfig(num_workers=2))
    assert isinstance(result, UserError)
    assert str(result).startswith(
        "2 workers of 1 CPU cannot start: there is room for 1; nodes: 10.0.0.1: 1 CPU"
    )
    assert lines == []


def test_workers_that_no_autoscaler_could_place_end_the_run_in_a_line(play: Play) -> None:
    result, lines = play([[is_too_large]], ScaleConfig())
    assert isinstance(result, UserError)
    assert str(result) == "stage prior stopped: Insufficient resources"
    assert lines == []


def refuses(folder: Path) -> WorkerGroupPollStatus:
    return one(running=False, error=UserError("every checkpoint is damaged"))


def test_a_mistake_that_a_worker_finds_ends_the_run_at_once(play: Play) -> None:
    """In its own line: no restart mends it."""
    result, lines = play([[refuses]], ScaleConfig(max_failures=3))
    assert isinstance(result, UserError)
    assert str(result) == "every checkpoint is damaged"
    assert lines == []


def test_nodes_that_are_taken_away_do_not_count(play: Play) -> None:
    starts: list[list[Poll]] = [[runs, is_drained, is_drained]] * 3
    result, lines = play([*(list(start) for start in starts), [ends]], ScaleConfig(max_failures=0))
    assert result == {"images": 1024}
    assert (
        lines
        == [
            "the node of rank 0 is about to be taken away; a checkpoint is saved",
            "workers restart: the node of rank 0 was taken away",
        ]
        * 3
    )


def test_the_best_and_the_last_checkpoint_are_kept(play: Play, tmp_path: Path) -> None:
    """Also one between two validations, which has no score, until the next one."""

    def kept() -> list[int]:
        return sorted(int(path.name[11:]) for path in (tmp_path / "prior").glob("checkpoint_0*"))

    found: list[list[int]] = []

    class Look(UserCallback):  # type: ignore[misc]
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            found.append(kept())

    unscored = saves(7)

    def between(folder: Path) -> WorkerGroupPollStatus:
        status = unscored(folder)
        report = status.worker_statuses[0].training_report
        assert report is not None
        report.metrics = {"valid/nll": math.nan}
        return status

    polls = [saves(2), saves(4, nll=5.0), saves(6, nll=7.0), between]
    play([[*polls, saves(8, nll=8.0), ends]], ScaleConfig(), callbacks=[Look()])
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


ELASTIC = ScaleConfig(num_workers="1:2")


def test_a_long_stage_grows_at_a_checkpoint(play: Play, growing: None) -> None:
    result, lines = play([[runs, runs, saves(100)], [runs, ends]], ELASTIC)
    assert result == {"images": 1024}
    assert lines == ["workers restart: their number changes from 1 to 2"]


def test_after_the_last_checkpoint_it_does_not(play: Play, growing: None) -> None:
    assert play([[runs, saves(1024), ends]], ELASTIC) == ({"images": 1024}, [])


def test_ray_trains_own_policy_restarts_it_in_the_last_second(
    play: Play, growing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last checkpoint, which is how figures were lost."""
    monkeypatch.setattr(
        Trainer,
        "_initialize_and_run_controller",
        lambda self, **named: super(Trainer, self)._initialize_and_run_controller(**named),
    )
    _, lines = play([[saves(1024)], [ends]], ELASTIC)
    assert lines == ["workers restart: their number changes from 1 to 2"]
