"""Shows the progress (a bar or lines) and the messages of a run on the console; writes them to log.txt."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from npdraw_dist.pipeline.store import Store
from npdraw_dist.system import process
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import read_bytes, write_text

LINE_EVERY_S = 15.0
LOG, LOG_WIDTH = "log.txt", 160  # file name; width of the file's tables, in columns
STORED_EVERY_S = 60.0  # least time between two writes to an object store, since each writes the whole log


class LoggedConsole(Console):
    """A console that also writes all printed text to the log, as plain text, even text that it does not show.

    to_log: called with the texts of all consoles within a block of `logged`. shown: returns whether the
    console shows printed text.
    """

    to_log: ClassVar[Callable[[str], None] | None] = None

    def __init__(self, shown: Callable[[], bool] = lambda: True) -> None:
        super().__init__(highlight=False, soft_wrap=True)
        self.shown = shown

    def print(self, *objects: Any, **options: Any) -> None:
        if self.shown():
            super().print(*objects, **options)
        if LoggedConsole.to_log is not None and not all(isinstance(item, Control) for item in objects):
            text = StringIO()
            Console(file=text, width=LOG_WIDTH, highlight=False, soft_wrap=True).print(*objects, **options)
            if plain := text.getvalue().rstrip("\n"):  # a progress bar leaves empty text
                self.note(plain)

    def note(self, text: str) -> None:
        """Writes a text to the log only."""
        if LoggedConsole.to_log is not None:
            LoggedConsole.to_log(text)


# `console` shows progress and decisions, unless `--quiet`; `results` shows warnings and requested output.
console = LoggedConsole(lambda: not process.is_quiet())
results = LoggedConsole()


class Show(Protocol):
    """Shows the number of images done, the rate in images/s, and a note such as the loss."""

    def __call__(self, done: int, rate: float = 0.0, note: str = "") -> None: ...


@contextmanager
def stage_progress(stage: str, total: int) -> Iterator[Show]:
    """Yields a function that shows the progress towards `total` images. total: 0 if the number is unknown."""
    out = console.note if console.is_terminal else _print
    out(f"{stage}: started" + (f" ({total:,} images)" if total else ""))
    line = _lines(stage, total, out)
    if not console.is_terminal:
        yield line
        return
    of = f"/{total:,}" if total else ""
    with Progress(
        TextColumn("{task.description:>6}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}}{of} images, {{task.fields[rate]:,.0f}}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=process.is_quiet(),
    ) as bars:
        task = bars.add_task(stage, total=total or None, rate=0.0, note="")

        def show(done: int, rate: float = 0.0, note: str = "") -> None:
            bars.update(task, completed=done, rate=rate, note=note)
            line(done, rate, note)

        yield show


def _print(line: str) -> None:
    console.print(line, markup=False)
    console.file.flush()


def _lines(stage: str, total: int, out: Callable[[str], None]) -> Show:
    """Returns a function that passes a line of progress to `out`, at most every LINE_EVERY_S seconds."""
    last = time.monotonic()

    def show(done: int, rate: float = 0.0, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            of = f"/{total:,}" if total else ""
            left = f", {(total - done) / rate:.0f} s left" if rate and total else ""
            out(f"{stage}: {done:,}{of} images, {rate:,.0f}/s{left}{note and f', {note}'}")

    return show


@contextmanager
def logged(store: Store) -> Iterator[None]:
    """Within the block, writes to log.txt what the consoles print, and the error that ends the block.

    If the log cannot be written, the run continues without it.
    """
    path, lock = store.path(LOG), threading.Lock()  # Ray prints its workers' lines from another thread
    stored_at, whole = -STORED_EVERY_S, ""  # the whole log, since an object store cannot append
    if not store.is_local and store.has(LOG):
        with contextlib.suppress(OSError):
            whole = read_bytes(store.filesystem, path).decode()

    def log(text: str) -> None:
        nonlocal stored_at, whole
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now}  {line}".rstrip() + "\n" for line in text.splitlines())
        with lock, contextlib.suppress(OSError):
            if store.is_local:
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(lines)
                return
            whole += lines
            if time.monotonic() - stored_at > STORED_EVERY_S:
                stored_at = time.monotonic()
                write_text(store.filesystem, path, whole)

    before, LoggedConsole.to_log = LoggedConsole.to_log, log
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        text = f"error: {error}" if isinstance(error, UserError) else traceback.format_exc()
        log("interrupted" if isinstance(error, KeyboardInterrupt) else text)
        raise
    finally:
        LoggedConsole.to_log = before
        if not store.is_local:
            with lock, contextlib.suppress(OSError):
                write_text(store.filesystem, path, whole)
