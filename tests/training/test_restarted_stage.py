"""A stage whose process dies: its figures and rows are those of the whole stage, whenever it died.

Times come from a clock that the test turns on.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from npdraw_dist.core.parts import Batch
from npdraw_dist.training import checkpoint, loop
from npdraw_dist.training.feed import MemoryFeed
from npdraw_dist.training.loop import Budget, Data, train
from npdraw_dist.training.metrics_log import read_metrics
from tests.helpers.local_context import LocalContext
from tests.training.test_loop import Regression, assert_equal, data, settings

LOCAL = fs.LocalFileSystem()
IMAGES, BATCH, EVERY = 96, 8, 24  # 12 steps; a validation after each three


class Time:
    """Stands still until `pass_s`. CPU time passes at half the speed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.now / 2)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


class Feed:
    """The first batch of a start comes after 5 s, each other one after 1 s; a step takes 2 s."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock
        self.feed = MemoryFeed(data(24), BATCH, 4, 5, 0, 1)

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        wait = 5
        for micro_batches in self.feed.steps(first):
            self.clock.pass_s(wait)
            wait = 1
            yield micro_batches


class Timed(Regression):
    """Takes 1 s a micro-batch to train and 10 s a validation batch, whose error is always 10."""

    clock: Time

    def forward(self, *arguments: Any) -> Any:
        self.clock.pass_s(1)
        return super().forward(*arguments)

    def evaluate(self, *arguments: Any) -> Any:
        self.clock.pass_s(10)
        return {"error": torch.full_like(super().evaluate(*arguments)["error"], 10.0)}


class Dies(BaseException):
    """As a process that is killed, but one can go on after it."""


class Mortal(LocalContext):
    """Dies at one point of a run: `(point, step)`."""

    dies_at: tuple[str, int] = ("", 0)
    saves_at: tuple[int, ...] = ()  # steps at which the cloud gives notice

    def die(self, point: str, step: int) -> None:
        if self.dies_at == (point, step):
            raise Dies

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.die("before the row", metrics["step"])
        super().report(metrics, saved, name)

    def save(self, saved: Path | None, name: str) -> None:
        step = int(name[len(checkpoint.PREFIX) :])
        self.die("before the checkpoint", step)
        super().save(saved, name)
        self.die("after the checkpoint", step)

    def show_progress(self, images_seen: int, images_per_s: float, note: Any) -> None:
        self.step = images_seen // BATCH
        self.die("after the step", self.step)

    def must_save(self) -> bool:
        return self.step in self.saves_at


def start(
    folder: Path | None, clock: Time, context: Mortal | None = None, began: float | None = None
) -> tuple[dict[str, Any], Timed]:
    """One start of the workers. began: of the command; if not given, it is a new command."""
    objective = Timed()
    objective.clock = clock
    context = context or Mortal(folder)
    context.began = clock.now if began is None else began
    budget = Budget(IMAGES, EVERY, checkpoint.Criterion("valid/error", "min"))
    summary = train(objective, Data(Feed(clock), data(10, 1)), settings(), budget, 5, context)
    return summary, objective


def mortal(folder: Path, point: str, step: int, saves_at: tuple[int, ...] = ()) -> Mortal:
    context = Mortal(folder)
    context.dies_at, context.saves_at = (point, step), saves_at
    return context


# 12 steps of 2 s, the first batch after 5 s and the rest after 1 s; 4 validations of 3 batches of 10 s.
TRAINED_S, WAITED_S, VALIDATED_S = 24 + 5 + 11, 11, 120
TIMES = {"images_per_s", "data_wait_share"}


def test_the_figures_of_a_start_alone(clock: Time) -> None:
    summary, _ = start(None, clock)
    assert summary["images"] == IMAGES
    assert summary["images_per_s"] == IMAGES / TRAINED_S
    assert summary["data_wait_share"] == WAITED_S / (TRAINED_S - 5)
    assert summary["seconds"] == TRAINED_S + VALIDATED_S
    assert summary["core_seconds"] == (TRAINED_S + VALIDATED_S) / 2
    assert (summary["first_wait_s"], summary["first_step_at"]) == (5, 1007)


@pytest.mark.parametrize("restarts", [1, 3])
def test_the_figures_are_those_of_the_whole_stage(restarts: int, clock: Time, tmp_path: Path) -> None:
    """Each restart costs a first wait of 5 s in place of one of 1 s, and what it repeats counts once."""
    began = clock.now
    for number in range(restarts):
        with pytest.raises(Dies):
            start(tmp_path, clock, mortal(tmp_path, "after the step", 4 + 3 * number), began)
        clock.pass_s(100)  # until the workers are back
    summary, _ = start(tmp_path, clock, began=began)
    assert summary["images"] == IMAGES
    assert summary["images_per_s"] == IMAGES / (TRAINED_S + 4 * restarts)
    assert summary["data_wait_share"] == (WAITED_S - restarts) / (TRAINED_S - 5 - restarts)
    assert summary["seconds"] == clock.now - began  # what the command took, restarts included
    assert summary["first_step_at"] == 1007
    last = read_metrics(LOCAL, str(tmp_path))[-1]
    assert {name: last[name] for name in TIMES} == {name: summary[name] for name in TIMES}


@pytest.mark.parametrize("same_command", [True, False])
def test_a_restart_after_the_last_step_changes_no_figure(
    same_command: bool, clock: Time, tmp_path: Path
) -> None:
    began = clock.now
    with pytest.raises(Dies):
        start(tmp_path, clock, mortal(tmp_path, "after the checkpoint", 12), began)
    clock.pass_s(100)
    summary, _ = start(tmp_path, clock, began=began if same_command else None)
    assert summary["images"] == IMAGES
    assert summary["images_per_s"] == IMAGES / TRAINED_S
    assert summary["data_wait_share"] == WAITED_S / (TRAINED_S - 5)
    assert summary["core_seconds"] == (TRAINED_S + VALIDATED_S) / 2
    # Between two commands nothing ran.
    assert summary["seconds"] == TRAINED_S + VALIDATED_S + 100 * same_command
    assert summary["earlier_s"] == (0 if same_command else TRAINED_S + VALIDATED_S)
    assert summary["fell_from_best"] is None


@pytest.mark.parametrize("point", ["before the row", "before the checkpoint", "after the checkpoint"])
@pytest.mark.parametrize("step", [3, 9, 12])
def test_rows_are_complete_and_none_is_double(point: str, step: int, clock: Time, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    _, undisturbed = start(whole, clock)
    with pytest.raises(Dies):
        start(parts, clock, mortal(parts, point, step))
    _, resumed = start(parts, clock)
    assert_equal(undisturbed, resumed)
    timeless = [
        [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
        for rows in (read_metrics(LOCAL, str(whole)), read_metrics(LOCAL, str(parts)))
    ]
    assert [row["step"] for row in timeless[0]] == [3, 6, 9, 12]
    assert timeless[0] == timeless[1]


def test_a_notice_of_the_cloud_saves_at_once(clock: Time, tmp_path: Path) -> None:
    """Training resumes from there: weights and metrics of training are those of an undisturbed run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    _, undisturbed = start(whole, clock)
    with pytest.raises(Dies):
        start(parts, clock, mortal(parts, "after the step", 6, saves_at=(5,)))
    assert [folder.name for folder in sorted(parts.glob("checkpoint_*"))] == [
        "checkpoint_000000003",
        "checkpoint_000000005",
    ]
    context = mortal(parts, "", 0)
    seen: list[int] = []
    context.must_save = lambda: bool(seen.append(context.step))  # type: ignore[func-returns-value, method-assign]
    summary, resumed = start(parts, clock, context)
    assert seen[0] == 7  # it went on with step 6, after which a validation was due
    assert_equal(undisturbed, resumed)
    rows = [read_metrics(LOCAL, str(folder)) for folder in (whole, parts)]
    assert [row["step"] for row in rows[1]] == [3, 6, 9, 12]
    for name in ("train/loss", "train/parts"):
        assert [row[name] for row in rows[1]] == pytest.approx([row[name] for row in rows[0]], rel=1e-12)
    assert summary["images"] == IMAGES


class Worse(Timed):
    """The errors of its four validations are `errors`."""

    errors: tuple[float, ...]
    validation = -1

    def evaluate(self, *arguments: Any) -> Any:
        error = super().evaluate(*arguments)["error"]
        return {"error": torch.full_like(error, self.errors[self.validation])}


def fallen(
    errors: tuple[float, ...], folder: Path, clock: Time, context: Mortal, patience: int = 0
) -> dict[str, Any]:
    """A start of a run whose four validations give `errors`."""
    objective = Worse()
    objective.clock, objective.errors = clock, errors

    def validate(*arguments: Any) -> dict[str, float]:
        step = context.step
        objective.validation = step // 3 - 1
        return before(*arguments)

    before = loop.validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", validate)
        budget = Budget(IMAGES, EVERY, checkpoint.Criterion("valid/error", "min"), patience)
        return train(objective, Data(Feed(clock), data(10, 1)), settings(), budget, 5, context)


FELL = "validation fell: valid/error is 12.50 after 72 images; its best was 10.00 after 48"


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said, without the line of each validation."""
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("after ")]


def test_a_fall_is_said_at_once_and_stays_in_the_summary(
    clock: Time, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Mortal(tmp_path)
    summary = fallen((11.0, 10.0, 12.5, 14.0), tmp_path, clock, context)
    assert warnings(capsys) == [FELL]
    assert summary["fell_from_best"] == {
        "metric": "valid/error",
        "best": 10.0,
        "best_at": 48,
        "now": 14.0,
        "now_at": 96,
    }


def test_a_fall_that_ends_is_not_in_the_summary(
    clock: Time, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = fallen((11.0, 10.0, 12.5, 11.9), tmp_path, clock, Mortal(tmp_path))
    assert warnings(capsys) == [FELL]
    assert summary["fell_from_best"] is None


@pytest.mark.parametrize("step", [10, 12])
def test_a_restart_knows_the_best_and_the_warning(
    step: int, clock: Time, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = (11.0, 10.0, 12.5, 14.0)
    point = "after the step" if step == 10 else "after the checkpoint"
    with pytest.raises(Dies):
        fallen(errors, tmp_path, clock, mortal(tmp_path, point, step))
    summary = fallen(errors, tmp_path, clock, Mortal(tmp_path))
    assert warnings(capsys) == [FELL]
    assert summary["fell_from_best"]["best"] == 10.0
    assert summary["fell_from_best"]["now"] == 14.0


ENDS = (10.0, 12.5, 14.0, 9.0)  # the fourth is never seen with a patience of 2


def test_a_stage_ends_when_validation_stays_far_below_its_best(
    clock: Time, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Mortal(tmp_path)
    summary = fallen(ENDS, tmp_path, clock, context, patience=2)
    assert summary["images"] == 3 * EVERY < IMAGES
    assert summary["ended_early"]
    assert summary["fell_from_best"]["now"] == 14.0
    assert "training ends, after 2 such validations in a row" in capsys.readouterr().out
    assert context.step == 3 * EVERY // BATCH
    assert read_metrics(LOCAL, str(tmp_path))[-1]["images_seen"] == 3 * EVERY


@pytest.mark.parametrize("point", ["after the step", "after the checkpoint"])
def test_a_restart_ends_where_the_stage_would_have(point: str, clock: Time, tmp_path: Path) -> None:
    with pytest.raises(Dies):
        fallen(ENDS, tmp_path, clock, mortal(tmp_path, point, 9), patience=2)
    summary = fallen(ENDS, tmp_path, clock, Mortal(tmp_path), patience=2)
    assert (summary["images"], summary["ended_early"]) == (3 * EVERY, True)
    assert fallen(ENDS, tmp_path, clock, Mortal(tmp_path), patience=2)["images"] == 3 * EVERY
