"""Where the files of a known data set are: at data.path, or downloaded once to the user's cache."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError


def cache_folder(source: str) -> Path:
    """Where downloads go: `$XDG_CACHE_HOME/npdraw_dist/<source>`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "npdraw_dist" / source


def data_folder(
    data: DataConfig, complete: Callable[[Path], bool], layout: str, download: Callable[[Path], object]
) -> Path:
    """The folder that holds the data set, as an absolute path.

    `complete(folder)` tells whether all is there, `layout` says in words what that is. A given
    data.path must be complete; only without one is the set downloaded. Raises UserError.
    """
    advice = f"--data.path must be a folder with {layout}"
    if data.path is not None:
        folder = Path(data.path).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"data.path {data.path} is no folder; {advice}")
        if not complete(folder):
            raise UserError(f"data.path {data.path} lacks the files of {data.source}; {advice}")
        return folder
    folder = cache_folder(data.source)
    if complete(folder):
        return folder
    if not data.download:
        raise UserError(f"data.source {data.source} needs its files; {advice} (or set --data.download true)")
    print(f"downloading {data.source} to {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent))  # so that a broken download leaves nothing
    try:
        download(beside)
        if not complete(beside):
            raise UserError("the download is incomplete")
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except Exception as error:  # urllib, torchvision and gdown each raise their own
        raise UserError(f"cannot download {data.source} ({error}); {advice}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder
