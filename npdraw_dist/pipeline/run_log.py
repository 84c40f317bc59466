"""log.txt of a run: what the console showed, with the time, over all commands that worked at the run."""

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import read_bytes, write_text
from npdraw_dist.pipeline.progress import sink
from npdraw_dist.pipeline.store import Store

LOG = "log.txt"
STORED_EVERY_S = 60.0  # an object store cannot append, so there the whole text is written, not more often


class RunLog:
    """Adds texts to log.txt. A storage that fails for a moment must not end the run: OSErrors pass."""

    def __init__(self, store: Store) -> None:
        self.store, self.path = store, store.path(LOG)
        self._text = ""  # all of it, in an object store
        self._stored_at = -STORED_EVERY_S
        self._lock = threading.Lock()  # lines of Ray's workers come from another thread
        if not store.is_local and store.has(LOG):
            with contextlib.suppress(OSError):
                self._text = read_bytes(store.filesystem, self.path).decode()

    def __call__(self, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now}  {line}".rstrip() + "\n" for line in text.splitlines())
        with self._lock, contextlib.suppress(OSError):
            if self.store.is_local:
                with Path(self.path).open("a", encoding="utf-8") as file:
                    file.write(lines)
                return
            self._text += lines
            if time.monotonic() - self._stored_at > STORED_EVERY_S:
                self._store()

    def close(self) -> None:
        if not self.store.is_local:
            with self._lock, contextlib.suppress(OSError):
                self._store()

    def _store(self) -> None:
        self._stored_at = time.monotonic()
        write_text(self.store.filesystem, self.path, self._text)


@contextlib.contextmanager
def logged(store: Store) -> Iterator[None]:
    """What the console shows inside the block, and the error that ends it, goes to log.txt of the run."""
    log, before = RunLog(store), sink.to
    sink.to = log
    try:
        yield
    except UserError as error:
        log(f"error: {error}")
        raise
    except KeyboardInterrupt:
        log("interrupted")
        raise
    except Exception:
        log(traceback.format_exc())
        raise
    finally:
        sink.to = before
        log.close()
