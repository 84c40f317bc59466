"""The progress of a stage on the console: a bar on a terminal, an occasional line in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from npdraw_dist.core import verbosity

LINE_EVERY_S = 15.0


class _ProgressConsole(Console):
    """Silent with `--quiet`."""

    def print(self, *objects: Any, **options: Any) -> None:
        if not verbosity.is_quiet():
            super().print(*objects, **options)


# Progress and decisions on `console`; warnings and what a command was asked for on `results`.
console = _ProgressConsole(highlight=False, soft_wrap=True)
results = Console(highlight=False, soft_wrap=True)


class Show(Protocol):
    """Shows the number of images done and the rate in images/s."""

    def __call__(self, done: int, rate: float = 0.0) -> None: ...


@contextmanager
def stage_progress(stage: str, total: int) -> Iterator[Show]:
    """Yields a function that shows the progress towards `total` images; 0: only reading would tell."""
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images, {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=console,
            disable=verbosity.is_quiet(),
        ) as bars:
            task = bars.add_task(stage, total=total, rate=0.0)
            yield lambda done, rate=0.0: bars.update(task, completed=done, rate=rate)
        return
    last = time.monotonic()
    console.print(f"{stage}: started" + (f" ({total:,} images)" if total else ""))

    def line(done: int, rate: float = 0.0) -> None:
        nonlocal last
        if time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            console.print(f"{stage}: {done:,}/{total:,} images, {rate:,.0f}/s{left}")
            console.file.flush()

    yield line
