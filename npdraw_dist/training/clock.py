"""The time that a stage has taken, over all its restarts: checkpoints carry it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Totals:
    """What a stage had taken at a point. Work after a checkpoint that a restart repeats counts once.

    trained_s: seconds of training, waiting for data included. first_waits_s: of these, waiting for the first
    batch of each start; waited_s: waiting for later batches. core_seconds: CPU seconds of all ranks. seconds:
    wall-clock seconds of all commands that ran the stage; earlier_s: of these, those before the command that
    began at the Unix time `began`. first_step_at: the Unix time at which the first step was done;
    first_wait_s: how long it had waited for its data.
    """

    trained_s: float = 0.0
    waited_s: float = 0.0
    first_waits_s: float = 0.0
    core_seconds: float = 0.0
    seconds: float = 0.0
    earlier_s: float = 0.0
    began: float = 0.0
    first_step_at: float | None = None
    first_wait_s: float | None = None

    @classmethod
    def of(cls, progress: dict[str, Any]) -> Self:
        """The totals in a checkpoint's progress; nothing has been taken without one."""
        return cls(**progress.get("clock", {}))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def rates(self, images: int) -> dict[str, float]:
        """images_per_s and data_wait_share after `images` images."""
        after_first = self.trained_s - self.first_waits_s
        return {
            "images_per_s": images / self.trained_s if self.trained_s else 0.0,
            "data_wait_share": self.waited_s / after_first if after_first > 0 else 0.0,
        }


class Clock:
    """Measures one start of a stage's workers, on one rank, on top of what the stage had taken before.

    The host runs ahead of a GPU, so it can wait for data while the device does not.
    began: Unix time at which the command began the stage. cpu_started: CPU seconds of this process when the
    rank started in it.
    """

    def __init__(self, before: Totals, began: float, cpu_started: float) -> None:
        same_command = before.began == began
        self._earlier_s = before.earlier_s if same_command else before.seconds
        self._before, self._began = before, began
        self._started, self._cpu_started = time.perf_counter(), cpu_started
        self._trained_s = self._waited_s = self._paused_s = 0.0
        self._first_wait_s: float | None = None
        self._first_step_at: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if self._first_wait_s is None:
            self._first_wait_s = seconds
        else:
            self._waited_s += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: validation and checkpoints."""
        start = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - start

    def count_step(self) -> None:
        """Called after each step. Training lasts until the last one, so a restart after it takes no time."""
        self._trained_s = time.perf_counter() - self._started - self._paused_s
        if self._first_step_at is None:
            self._first_step_at = time.time()

    def core_seconds(self) -> float:
        """CPU seconds of this process since the rank started in it."""
        return time.process_time() - self._cpu_started

    def totals(self, core_seconds: float = 0.0) -> Totals:
        """The totals of the stage until now. core_seconds: since the start, of all ranks."""
        before, first_wait_s = self._before, self._first_wait_s or 0.0
        return replace(
            before,
            trained_s=before.trained_s + self._trained_s,
            waited_s=before.waited_s + self._waited_s,
            first_waits_s=before.first_waits_s + first_wait_s,
            core_seconds=before.core_seconds + core_seconds,
            seconds=self._earlier_s + max(time.time() - self._began, 0.0),
            earlier_s=self._earlier_s,
            began=self._began,
            first_step_at=self._first_step_at if before.first_step_at is None else before.first_step_at,
            first_wait_s=self._first_wait_s if before.first_wait_s is None else before.first_wait_s,
        )
