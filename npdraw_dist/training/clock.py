"""Measures the time that a stage takes over all its restarts. Checkpoints store this time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

PAUSED = 0.2  # largest share of a stage's time that pauses, such as validations, may take
FREE_S = 60.0  # seconds of pauses that are never too long


@dataclass
class Totals:
    """The seconds that a stage has taken. Work that a restart repeats counts once, except in `seconds`.

    trained_s: training, which includes first_waits_s of waiting for the first batch of each start, and
    waited_s of waiting for later batches. core_seconds: CPU time of all ranks, which includes
    validation_core_seconds of validation, pictures and checkpoints. seconds: wall-clock time of all commands,
    which includes earlier_s of earlier commands. began: Unix time at which the present command began the
    stage. first_step_at: Unix time of the stage's first step. first_wait_s: the wait for that step's batch.
    """

    trained_s: float = 0.0
    waited_s: float = 0.0
    first_waits_s: float = 0.0
    core_seconds: float = 0.0
    validation_core_seconds: float = 0.0
    seconds: float = 0.0
    earlier_s: float = 0.0
    began: float = 0.0
    first_step_at: float | None = None
    first_wait_s: float | None = None

    def rates(self, images: int) -> dict[str, float]:
        """The metrics images_per_s and data_wait_share after training on `images` images."""
        after_first = self.trained_s - self.first_waits_s
        return {
            "images_per_s": images / self.trained_s if self.trained_s else 0.0,
            "data_wait_share": self.waited_s / after_first if after_first > 0 else 0.0,
        }


class Clock:
    """Measures one start of a stage on one rank, and adds it to the time of earlier starts.

    progress: read from the checkpoint from which training resumes, or {}. began: Unix time at which the
    present command began the stage.
    """

    def __init__(self, progress: dict[str, Any], began: float) -> None:
        self._taken = taken = Totals(**progress.get("clock", {}))
        if taken.began != began:  # a later command resumes the stage
            taken.began, taken.earlier_s = began, taken.seconds
        self._before = replace(taken)  # the totals before this start
        self._started, self._has_waited = time.perf_counter(), False
        self._paused_s = self._paused_core_seconds = 0.0
        self._pause_began: float | None = None  # the CPU time at which the present pause began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as a wait for a batch."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if self._has_waited:
            self._taken.waited_s += seconds
            return
        self._has_waited = True
        self._taken.first_waits_s += seconds
        if self._taken.first_wait_s is None:
            self._taken.first_wait_s = seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts the time of the block as validation or saving, not as training."""
        start, self._pause_began = time.perf_counter(), time.process_time()
        yield
        self._paused_s += time.perf_counter() - start
        self._paused_core_seconds, self._pause_began = self.paused_core_seconds, None

    @property
    def pauses_too_long(self) -> bool:
        """Whether the pauses of this start took over PAUSED of its time, once they took FREE_S in total."""
        return self._paused_s > max(FREE_S, PAUSED * (time.perf_counter() - self._started))

    @property
    def paused_core_seconds(self) -> float:
        """CPU seconds of this process in all pauses of this start, the present one included."""
        present = 0.0 if self._pause_began is None else time.process_time() - self._pause_began
        return self._paused_core_seconds + present

    def count_step(self) -> None:
        """Called after each step. Counts the time until now, except pauses, as training.

        Time after the last step is not training, so a restart of a finished stage adds none.
        """
        self._taken.trained_s = self._before.trained_s + time.perf_counter() - self._started - self._paused_s
        if self._taken.first_step_at is None:
            self._taken.first_step_at = time.time()

    def totals(self, core_seconds: float = 0.0, paused_core_seconds: float = 0.0) -> Totals:
        """The totals of the stage until now. The arguments are CPU seconds of all ranks in this start."""
        self._taken.core_seconds = self._before.core_seconds + core_seconds
        self._taken.validation_core_seconds = self._before.validation_core_seconds + paused_core_seconds
        self._taken.seconds = self._taken.earlier_s + max(time.time() - self._taken.began, 0.0)
        return self._taken
