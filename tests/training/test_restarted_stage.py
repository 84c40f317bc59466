"""A stage whose process dies reports the figures and rows of an undisturbed stage; early stopping.

Times come from a clock that the test sets.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from npdraw_dist.training import checkpoint
from npdraw_dist.training.early_stopping import EarlyStopping, far_below
from npdraw_dist.training.feed import MemoryFeed, Rows, Share
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
        self.feed = MemoryFeed(data(24), Share(BATCH, 5))

    def steps(self, first: int) -> Iterator[Rows]:
        wait = 5
        for rows in self.feed.steps(first):
            self.clock.pass_s(wait)
            wait = 1
            yield rows


class Timed(Regression):
    """Takes 1 s a micro-batch to train and 10 s a validation batch, whose error is always 10."""

    clock: Time
    validation_s = 10.0

    def forward(self, *arguments: Any) -> Any:
        self.clock.pass_s(1)
        return super().forward(*arguments)

    def evaluate(self, *arguments: Any) -> Any:
        self.clock.pass_s(self.validation_s)
        return {"error": torch.full_like(super().evaluate(*arguments)["error"], 10.0)}


class Dies(BaseException):
    """In place of the death of a process."""


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
    folder: Path | None,
    clock: Time,
    dies_at: tuple[str, int] = ("", 0),
    began: float | None = None,
    saves_at: tuple[int, ...] = (),
    validation_s: float = 10.0,
) -> tuple[dict[str, Any], Timed]:
    """One start of the workers. began: when the command began; None for a new command."""
    objective = Timed()
    objective.clock, objective.validation_s = clock, validation_s
    context = Mortal(folder)
    context.dies_at, context.saves_at = dies_at, saves_at
    context.began = clock.now if began is None else began
    budget = Budget(IMAGES, EVERY, checkpoint.Criterion("valid/error", "min"))
    summary = train(objective, Data(Feed(clock), data(10, 1)), settings(), budget, 5, context)
    return summary, objective


# 12 steps of 2 s, the first batch after 5 s and the rest after 1 s; 4 validations of a batch of 10 s.
TRAINED_S, WAITED_S, VALIDATED_S = 24 + 5 + 11, 11, 40
TIMES = {"images_per_s", "data_wait_share"}


@pytest.mark.parametrize("restarts", [0, 3])
def test_the_figures_are_those_of_the_whole_stage(restarts: int, clock: Time, tmp_path: Path) -> None:
    """A restart waits 5 s in place of 1 s for its first batch, and repeated work counts once."""
    began = clock.now
    for number in range(restarts):
        with pytest.raises(Dies):
            start(tmp_path, clock, ("after the step", 4 + 3 * number), began)
        clock.pass_s(100)  # until the workers are back
    summary, _ = start(tmp_path, clock, began=began)
    assert summary["images"] == IMAGES
    assert summary["images_per_s"] == IMAGES / (TRAINED_S + 4 * restarts)
    assert summary["data_wait_share"] == (WAITED_S - restarts) / (TRAINED_S - 5 - restarts)
    assert summary["seconds"] == clock.now - began  # what the command took, restarts included
    assert (summary["first_wait_s"], summary["first_step_at"]) == (5, 1007)
    last = read_metrics(LOCAL, str(tmp_path))[-1]
    assert {name: last[name] for name in TIMES} == {name: summary[name] for name in TIMES}


def test_validations_that_take_too_long_are_left_out_but_not_the_last(clock: Time, tmp_path: Path) -> None:
    """After 100 s of validation and 13 s of training only checkpoints follow, whose sums are not lost."""
    start(tmp_path, clock, validation_s=100.0)
    rows = read_metrics(LOCAL, str(tmp_path))
    assert [row["step"] for row in rows] == [3, 12]
    assert len(list(tmp_path.glob("checkpoint_*"))) == 4
    clock.now = 1000.0
    every = tmp_path / "every"
    start(every, clock)
    assert [row["step"] for row in read_metrics(LOCAL, str(every))] == [3, 6, 9, 12]


@pytest.mark.parametrize("same_command", [True, False])
def test_a_restart_after_the_last_step_changes_no_figure(
    same_command: bool, clock: Time, tmp_path: Path
) -> None:
    began = clock.now
    with pytest.raises(Dies):
        start(tmp_path, clock, ("after the checkpoint", 12), began)
    clock.pass_s(100)
    summary, _ = start(tmp_path, clock, began=began if same_command else None)
    assert summary["images"] == IMAGES
    assert summary["images_per_s"] == IMAGES / TRAINED_S
    assert summary["data_wait_share"] == WAITED_S / (TRAINED_S - 5)
    assert summary["core_seconds"] == (TRAINED_S + VALIDATED_S) / 2
    assert summary["validation_core_seconds"] == VALIDATED_S / 2
    # Between two commands nothing ran.
    assert summary["seconds"] == TRAINED_S + VALIDATED_S + 100 * same_command
    assert summary["earlier_s"] == (0 if same_command else TRAINED_S + VALIDATED_S)
    assert summary["fell_from_best"] is None


@pytest.mark.parametrize(
    "dies_at",
    [
        ("before the row", 3),
        ("before the row", 12),
        ("before the checkpoint", 9),
        ("after the checkpoint", 12),
    ],
)
def test_rows_are_complete_and_none_is_double(dies_at: tuple[str, int], clock: Time, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, undisturbed = start(whole, clock)
    with pytest.raises(Dies):
        start(parts, clock, dies_at)
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
    _, undisturbed = start(whole, clock)
    with pytest.raises(Dies):
        start(parts, clock, ("after the step", 6), saves_at=(5,))
    assert [int(folder.name[-9:]) for folder in sorted(parts.glob("checkpoint_*"))] == [3, 5]
    summary, resumed = start(parts, clock, ("after the step", 5))  # which does not come again
    assert_equal(undisturbed, resumed)
    rows = [read_metrics(LOCAL, str(folder)) for folder in (whole, parts)]
    assert [row["step"] for row in rows[1]] == [3, 6, 9, 12]
    for name in ("train/loss", "train/parts"):
        assert [row[name] for row in rows[1]] == pytest.approx([row[name] for row in rows[0]], rel=1e-12)
    assert summary["images"] == IMAGES


class Worse(Timed):
    """The validations, each after three steps, have these `errors`."""

    errors: tuple[float, ...]
    context: Mortal

    def evaluate(self, *arguments: Any) -> Any:
        error = super().evaluate(*arguments)["error"]
        return {"error": torch.full_like(error, self.errors[self.context.step // 3 - 1])}


def fallen(
    errors: tuple[float, ...],
    folder: Path,
    clock: Time,
    dies_at: tuple[str, int] = ("", 0),
    patience: int = 0,
) -> dict[str, Any]:
    """A start of a run whose validations give `errors`."""
    objective, context = Worse(), Mortal(folder)
    objective.clock, objective.errors, objective.context = clock, errors, context
    context.dies_at = dies_at
    budget = Budget(IMAGES, EVERY, checkpoint.Criterion("valid/error", "min"), patience)
    return train(objective, Data(Feed(clock), data(10, 1)), settings(), budget, 5, context)


@pytest.mark.parametrize("dies_at", [None, ("after the step", 10), ("after the checkpoint", 12)])
def test_a_fall_is_said_once_and_is_in_the_summary_also_after_a_restart(
    dies_at: tuple[str, int] | None, clock: Time, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = (11.0, 10.0, 12.5, 14.0)
    if dies_at is not None:
        with pytest.raises(Dies):
            fallen(errors, tmp_path, clock, dies_at)
    summary = fallen(errors, tmp_path, clock)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("after ")]
    assert len(lines) == 1
    assert "valid/error is 12.50 after 72 images; its best was 10.00 after 48" in lines[0]
    expected = {"metric": "valid/error", "best": 10.0, "best_at": 48, "now": 14.0, "now_at": 96}
    assert summary["fell_from_best"] == expected


@pytest.mark.parametrize("dies_at", [None, ("after the step", 9), ("after the checkpoint", 9)])
def test_a_stage_ends_when_validation_stays_far_below_its_best_also_after_a_restart(
    dies_at: tuple[str, int] | None, clock: Time, tmp_path: Path
) -> None:
    errors = (10.0, 12.5, 14.0, 9.0)  # the fourth is never seen with a patience of 2
    if dies_at is not None:
        with pytest.raises(Dies):
            fallen(errors, tmp_path, clock, dies_at, patience=2)
    summary = fallen(errors, tmp_path, clock, patience=2)
    assert (summary["images"], summary["ended_early"]) == (3 * EVERY, True)
    assert summary["fell_from_best"]["now"] == 14.0
    assert read_metrics(LOCAL, str(tmp_path))[-1]["images_seen"] == 3 * EVERY
    assert fallen(errors, tmp_path, clock, patience=2)["images"] == 3 * EVERY


ELBO = checkpoint.Criterion("valid/elbo", "max")
NLL = checkpoint.Criterion("valid/nll", "min")


@pytest.mark.parametrize(
    ("best", "now", "far"),
    [
        (-60.0, -61.9, False),  # 2 nats
        (-60.0, -62.1, True),
        (-9000.0, -9179.0, False),  # 2%
        (-9000.0, -9181.0, True),
        (9000.0, 8819.0, True),  # a density can be above 1
        (-60.0, -math.inf, True),
    ],
)
def test_far_is_two_nats_and_two_percent(best: float, now: float, far: bool) -> None:
    assert far_below(best, now) == far


@pytest.mark.parametrize(("criterion", "sign"), [(ELBO, 1), (NLL, -1)])
def test_each_fall_is_said_once(criterion: checkpoint.Criterion, sign: int) -> None:
    """A new best allows the next line. NaN is never the best, and a row may lack the metric."""
    watch = EarlyStopping(criterion, {})
    values = [math.nan, -90.0, -80.0, -85.0, -90.0, -81.0, -85.0, -79.0, -82.0]
    lines = []
    for number, value in enumerate(values):
        assert watch.see({"another": 9.0, "images_seen": number}) is None
        lines.append(watch.see({criterion.name: sign * value, "images_seen": number}))
    assert [number for number, line in enumerate(lines) if line] == [3, 8]
    assert f"{sign * -82:.2f} after 8 images" in str(lines[8])
    assert f"best was {sign * -79:.2f} after 7" in str(lines[8])


def seen(watch: EarlyStopping, values: list[float], may_end: bool = True) -> list[bool]:
    """Whether training has ended after each of the validations."""
    ended = []
    for number, value in enumerate(values):
        watch.see({"valid/elbo": value, "images_seen": number}, may_end)
        ended.append(watch.ended)
    return ended


def test_training_ends_after_falls_in_a_row() -> None:
    watch = EarlyStopping(ELBO, {}, patience=2)
    assert seen(watch, [-90.0, -80.0, -85.0, -81.0, -85.0, -86.0]) == [False] * 5 + [True]  # -81 is near
    assert watch.summary()["ended_early"]
    assert "ended_early" not in EarlyStopping(ELBO, {}, patience=2).summary()


def test_a_bound_that_comes_back_ends_nothing() -> None:
    """A validation that is better than the one before does not count, as for a VQ-VAE after 10,000 images."""
    watch = EarlyStopping(ELBO, {}, patience=3)
    assert not any(seen(watch, [-115.0, -219.0, -149.0, -130.0, -125.0, -121.0, -118.0, -114.0]))
    assert seen(watch, [-120.0, -119.0, -121.0, -120.0, -122.0]) == [False] * 4 + [True]


def test_falls_that_do_not_count_end_nothing() -> None:
    watch = EarlyStopping(ELBO, {}, patience=2)
    assert not any(seen(watch, [-80.0, -85.0, -90.0, -95.0], may_end=False))
    assert seen(watch, [-95.0, -96.0]) == [False, True]
    assert not any(seen(EarlyStopping(ELBO, {}), [-80.0, -85.0, -90.0, -95.0]))  # no patience
