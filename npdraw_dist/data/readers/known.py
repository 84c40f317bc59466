"""What known data sets share: their folder, and what a worker keeps of a file for the next shard.

The folder is data.path, or one in the user's cache, to which the set is downloaded once.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError

Found = TypeVar("Found")
# Whether sources that are opened may be downloaded.
DOWNLOADS = ContextVar("DOWNLOADS", default=True)
Given = ParamSpec("Given")
Made = TypeVar("Made")


def cache_folder(source: str) -> Path:
    """Where downloads go: `$XDG_CACHE_HOME/npdraw_dist/<source>`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "npdraw_dist" / source


def find_data(
    data: DataConfig, find: Callable[[Path], Found | None], layout: str, download: Callable[[Path], object]
) -> Found:
    """What `find(folder)` finds of the data set in its folder, an absolute path; None if files are missing.

    layout: the files in words. Only if data.path is not given is the set downloaded. Raises UserError.
    """
    advice = f"--data.path must be a folder with {layout}"
    if data.path is not None:
        folder = Path(data.path).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"data.path {data.path} is no folder; {advice}")
        if (found := find(folder)) is None:
            raise UserError(f"data.path {data.path} lacks the files of {data.source}; {advice}")
        return found
    folder = cache_folder(data.source)
    if (found := find(folder)) is not None:
        return found
    if not DOWNLOADS.get():
        raise UserError(f"data.source {data.source} needs its files; {advice}")
    print(f"downloading {data.source} to {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))  # so that a broken download leaves nothing
    try:
        download(temporary)
        if find(temporary) is None:
            raise UserError("the download is incomplete")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except Exception as error:  # urllib, torchvision and gdown each raise their own
        raise UserError(f"cannot download {data.source} ({error}); {advice}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = find(folder)
    assert found is not None, "a renamed folder holds the same files"
    return found


def first_folder(candidates: Iterable[Path], complete: Callable[[Path], bool]) -> Path | None:
    """The first complete one of some folders."""
    return next((folder for folder in candidates if complete(folder)), None)


def kept(maxsize: int) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """`lru_cache` for threads that read shards of one file: the first one makes it, and the others wait."""

    def decorated(make: Callable[Given, Made]) -> Callable[Given, Made]:
        lock = threading.RLock()
        cached: Callable[Given, Made] = lru_cache(maxsize)(make)  # type: ignore[assignment]  # of hashables

        @wraps(make)
        def get(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            with lock:
                return cached(*args, **kwargs)

        return get

    return decorated
