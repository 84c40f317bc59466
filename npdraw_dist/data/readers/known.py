"""Finds or downloads the folder of a known data set, and caches what a worker needs for several shards.

The folder is data.path, or a folder in the user's cache, to which the set is downloaded once.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import require_extra

# Whether opening a source may download it.
DOWNLOADS = ContextVar("DOWNLOADS", default=True)
Given = ParamSpec("Given")
Made = TypeVar("Made")


def find_data(
    data: DataConfig,
    inner: tuple[str, ...],
    complete: Callable[[Path], bool],
    layout: str,
    dataset: str,
    *arguments: Mapping[str, object],
) -> Path:
    """The absolute path of the folder with a data set's files, in data.path or else in the user's cache.

    inner: subfolders that can have the files. complete: returns whether a folder has all files. layout:
    describes the files in messages. Without data.path, torchvision's class `dataset`, called with each of
    `arguments`, downloads the set once to `$XDG_CACHE_HOME/npdraw_dist/<source>`, by default under
    `~/.cache`. Raises UserError if files are missing and not downloaded.
    """

    def found(folder: Path) -> Path | None:
        return next(filter(complete, (*(folder / name for name in inner), folder)), None)

    advice = f"--data.path must be a folder with {layout}"
    if data.path is not None:
        folder = Path(data.path).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"data.path {data.path} is no folder; {advice}")
        if (root := found(folder)) is None:
            raise UserError(f"data.path {data.path} lacks the files of {data.source}; {advice}")
        return root
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npdraw_dist" / data.source
    if (root := found(folder)) is not None:
        return root
    if not DOWNLOADS.get():
        raise UserError(f"data.source {data.source} needs its files; {advice}")
    require_extra(f"the download of {data.source}", "data", "torchvision")
    print(f"downloading {data.source} to {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))  # a failed download leaves no files
    try:
        from torchvision import datasets  # the import takes seconds

        for own in arguments:
            getattr(datasets, dataset)(str(temporary), download=True, **own)
        if (root := found(temporary)) is None:
            raise UserError("the download is incomplete")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except Exception as error:  # urllib, torchvision and gdown raise different errors
        raise UserError(f"cannot download {data.source} ({error}); {advice}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / root.relative_to(temporary)


def kept(maxsize: int) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A decorator like `lru_cache`, but while one thread calls the function, others wait for its result."""

    def decorated(make: Callable[Given, Made]) -> Callable[Given, Made]:
        lock = threading.RLock()
        cached: Callable[Given, Made] = lru_cache(maxsize)(make)  # type: ignore[assignment]  # of hashables

        @wraps(make)
        def get(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            with lock:
                return cached(*args, **kwargs)

        return get

    return decorated
