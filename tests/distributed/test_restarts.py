"""When a run whose workers failed starts again, and the line while its workers wait for free nodes."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import ray
from pyarrow import fs
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed import failures, run
from npdraw_dist.distributed.elastic import Size
from npdraw_dist.distributed.resources import Workers
from npdraw_dist.distributed.run import WAIT_S, TrainRun, run_training
from npdraw_dist.system.errors import StorageFailed, UserError
from npdraw_dist.training.checkpoint import Criterion

LOCAL = fs.LocalFileSystem()
DIED = f"ActorDiedError: {ActorDiedError()}"
Fit = Callable[[Path], Any]


def dies(folder: Path) -> Any:
    raise WorkerGroupError("failed", {0: ActorDiedError()})


def saves_and_dies(step: int) -> Fit:
    def fit(folder: Path) -> Any:
        (folder / f"checkpoint_{step:09d}").mkdir()
        dies(folder)

    return fit


def is_taken(folder: Path) -> Any:
    """Its node was taken away without notice."""
    lost = ActorDiedError()
    lost._preempted = True
    raise WorkerGroupError("failed", {0: lost})


def fails(error: Exception) -> Fit:
    def fit(folder: Path) -> Any:
        raise WorkerGroupError("failed", {0: error})

    return fit


class InsufficientClusterResourcesError(Exception):
    """In place of Ray Train's."""


def too_large(folder: Path) -> Any:
    raise ControllerError(InsufficientClusterResourcesError("Insufficient\nresources"))


def dies_at_start(folder: Path) -> Any:
    raise ControllerError(WorkerGroupStartupFailedError("At least one worker failed to initialize."))


def is_not_placed(folder: Path) -> Any:
    raise ControllerError(WorkerGroupStartupTimeoutError(2))


def ends(folder: Path) -> Any:
    return SimpleNamespace(return_value={"images": 1024})


Play = Callable[[list[Fit], int], tuple[Any, list[str | None]]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(what each call of `fit` does, scale.max_failures): the result or the error, and the lines."""
    lines: list[str | None] = []
    mailbox = SimpleNamespace(ended=SimpleNamespace(remote=lines.append))
    monkeypatch.setattr(run, "start_mailbox", lambda: mailbox)
    monkeypatch.setattr(run, "end_mailbox", lambda actor: None)
    monkeypatch.setattr(ray, "put", lambda job: job)
    monkeypatch.setattr(run._Watch, "_run", lambda self: None)
    folder = tmp_path / "prior"
    folder.mkdir()

    def played(fits: list[Fit], most: int) -> tuple[Any, list[str | None]]:
        left = iter(fits)
        fit = SimpleNamespace(fit=lambda: next(left)(folder))
        monkeypatch.setattr(TrainRun, "trainer", lambda self, began, count: fit)
        best, workers = Criterion("valid/nll", "min"), Workers(1, 1, 1, 0.0)
        scale = ScaleConfig(max_failures=most)
        training: Any = TrainRun(dies, None, workers, scale, best, LOCAL, str(tmp_path), "prior")  # type: ignore
        try:
            return run_training(training, None), lines  # type: ignore[arg-type]  # nothing is displayed
        except (WorkerGroupError, UserError, StorageFailed) as error:
            return error, lines
        finally:
            assert next(left, None) is None, "a start is left over"

    return played


def test_failures_with_a_checkpoint_in_between_are_survived(play: Play) -> None:
    """Only one failure in a row is allowed."""
    result, lines = play([*(saves_and_dies(step) for step in (2, 4, 6, 8)), ends], 1)
    assert result == {"images": 1024}
    assert lines == [f"workers restart: {DIED} (failure 1 of at most 1 without a new checkpoint)"] * 4


def test_a_checkpoint_that_is_made_again_is_no_progress(play: Play) -> None:
    """Each start gives a checkpoint that never becomes whole a new name."""

    def again(generation: int) -> Fit:
        def fit(folder: Path) -> Any:
            (folder / f"checkpoint_000000100_{generation}").mkdir()
            dies(folder)

        return fit

    result, lines = play([saves_and_dies(100), again(1)], 1)
    assert isinstance(result, UserError)
    assert len(lines) == 1


def test_failures_in_a_row_end_the_run_with_what_became_of_the_worker(play: Play) -> None:
    result, lines = play([saves_and_dies(2), dies, dies], 2)
    assert isinstance(result, UserError)
    assert str(result).startswith(f"stage prior stopped: {DIED}")
    assert "--scale.max_failures 2" in str(result)
    assert len(lines) == 2


def test_starts_that_fail_end_the_run_in_a_line(play: Play) -> None:
    result, lines = play([dies_at_start, dies_at_start, dies_at_start], 2)
    assert isinstance(result, UserError)
    assert str(result).startswith("stage prior stopped: WorkerGroupStartupFailedError: At least one worker")
    assert len(lines) == 2


def test_workers_wait_for_free_nodes_however_long_and_that_is_no_failure(play: Play) -> None:
    result, lines = play([*[is_not_placed] * 3, dies, *[is_not_placed] * 3, ends], 1)
    assert result == {"images": 1024}
    restarts = f"workers restart: {DIED} (failure 1 of at most 1 without a new checkpoint)"
    assert lines == [None, None, None, restarts, None, None, None]


def test_a_storage_that_does_not_answer_is_no_progress(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "by_age", Mock(side_effect=OSError("timed out")))
    monkeypatch.setattr(run, "remove_broken_snapshot", lambda *_: None)
    result, _ = play([saves_and_dies(2), saves_and_dies(4)], 1)
    assert isinstance(result, UserError)


def test_without_a_limit_every_failure_is_survived_and_taken_nodes_do_not_count(play: Play) -> None:
    result, lines = play([*[dies] * 5, ends], -1)
    assert result == {"images": 1024}
    assert lines == [f"workers restart: {DIED}"] * 5
    result, lines = play([*[is_taken] * 3, ends], 0)
    assert result == {"images": 1024}
    assert all("taken away" in str(line) for line in lines[-3:])


def resizes(folder: Path) -> Any:
    return SimpleNamespace(return_value=run.RESIZED)


def test_workers_that_end_to_become_more_start_again_and_that_is_no_failure(play: Play) -> None:
    result, lines = play([resizes, dies, resizes, ends], 1)
    assert result == {"images": 1024}
    assert lines == [None, f"workers restart: {DIED} (failure 1 of at most 1 without a new checkpoint)", None]


@pytest.mark.parametrize(
    ("fit", "most", "reason"),
    [
        (fails(OSError("no space left on device")), 0, "its storage failed (no space left on device)"),
        (too_large, 3, "Insufficient resources"),  # no autoscaler could place them
        (fails(UserError("every checkpoint is damaged")), 3, "every checkpoint is damaged"),
    ],
)
def test_what_no_restart_mends_ends_the_run_in_a_line(play: Play, fit: Fit, most: int, reason: str) -> None:
    result, lines = play([fit], most)
    assert isinstance(result, UserError)
    assert reason in str(result)
    assert lines == []


def test_a_line_says_every_half_minute_that_workers_wait_until_they_start(
    monkeypatch: pytest.MonkeyPatch, cluster: Callable[..., None]
) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.s)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(run._Watch, "_run", lambda self: None)
    cluster((4, 1), (4, 1))
    watch = run._Watch(None, None, Size(Workers(2, 2, 4, 1.0)))  # type: ignore[arg-type]  # nothing is displayed

    def lines(seconds: int, waits: bool) -> list[str]:
        found: list[str] = []
        for _ in range(seconds):
            now.s += 1
            found += watch.waiting(waits)
        return found

    line = (
        "waits for 2 workers of 4 CPUs and a GPU to start; "
        "nodes: 10.0.0.1: 4 CPUs, 1 GPU; 10.0.0.2: 4 CPUs, 1 GPU; free: 4 CPUs"
    )
    assert lines(int(WAIT_S) - 1, waits=True) == []
    assert lines(int(WAIT_S) + 1, waits=True) == [line] * 2
    assert lines(300, waits=False) == []
    assert lines(int(WAIT_S), waits=True) == [line]  # the workers failed
