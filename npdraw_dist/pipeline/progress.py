"""The progress of a stage on the console: a bar on a terminal, an occasional line in a log.

What the console shows of a run is also in the run's log.txt (`pipeline.run_log`), progress as lines.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any, Protocol

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from npdraw_dist.core import verbosity

LINE_EVERY_S = 15.0
LOG_WIDTH = 160  # of tables in log.txt


class Sink:
    """Where the texts of all consoles go too: the log of the run that is worked at, if there is one."""

    def __init__(self) -> None:
        self.to: Callable[[str], None] | None = None


sink = Sink()


class LoggedConsole(Console):
    """A console that also gives what is printed to `sink`, as plain text without a line's end.

    shown: whether it shows anything, now; what is not shown is in the log all the same.
    """

    def __init__(self, shown: Callable[[], bool] = lambda: True) -> None:
        super().__init__(highlight=False, soft_wrap=True)
        self.shown = shown

    def print(self, *objects: Any, **options: Any) -> None:
        if self.shown():
            super().print(*objects, **options)
        if sink.to is not None and not all(isinstance(item, Control) for item in objects):
            plain = Console(file=StringIO(), width=LOG_WIDTH, highlight=False, soft_wrap=True)
            plain.print(*objects, **options)
            text = plain.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
            if text:  # else a line's end, as after a bar
                self.note(text)

    def note(self, text: str) -> None:
        """A text for the log alone."""
        if sink.to is not None:
            sink.to(text)


# Progress and decisions on `console`, silent with `--quiet`; warnings, and what was asked for, on `results`.
console = LoggedConsole(lambda: not verbosity.is_quiet())
results = LoggedConsole()


class Show(Protocol):
    """Shows the number of images done, the rate in images/s, and a note such as the loss."""

    def __call__(self, done: int, rate: float = 0.0, note: str = "") -> None: ...


@contextmanager
def stage_progress(stage: str, total: int) -> Iterator[Show]:
    """Yields a function that shows the progress towards `total` images; 0: only reading would tell."""
    started = f"{stage}: started" + (f" ({total:,} images)" if total else "")
    of = f"/{total:,}" if total else ""
    if console.is_terminal:
        console.note(started)
        line = _Lines(stage, total, console.note)
        with Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            TextColumn(f"{{task.completed:,.0f}}{of} images, {{task.fields[rate]:,.0f}}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=verbosity.is_quiet(),
        ) as bars:
            task = bars.add_task(stage, total=total or None, rate=0.0, note="")

            def show(done: int, rate: float = 0.0, note: str = "") -> None:
                bars.update(task, completed=done, rate=rate, note=note)
                line(done, rate, note)

            yield show
        return
    console.print(started)
    yield _Lines(stage, total, _print)


def _print(line: str) -> None:
    console.print(line, markup=False)
    console.file.flush()


class _Lines:
    """Gives `out` a line of the progress every LINE_EVERY_S seconds."""

    def __init__(self, stage: str, total: int, out: Callable[[str], None]) -> None:
        self.stage, self.total, self.out = stage, total, out
        self.last = time.monotonic()

    def __call__(self, done: int, rate: float = 0.0, note: str = "") -> None:
        if time.monotonic() - self.last > LINE_EVERY_S:
            self.last = time.monotonic()
            of = f"/{self.total:,}" if self.total else ""
            left = f", {(self.total - done) / rate:.0f} s left" if rate and self.total else ""
            said = f", {note}" if note else ""
            self.out(f"{self.stage}: {done:,}{of} images, {rate:,.0f}/s{left}{said}")
