"""Lists the runs of a storage, with their state, time and numbers, for `npdraw runs`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from pyarrow import fs

from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.pipeline.store import BEST, COMPARISON, CONFIG, FOLDERS, OPENINGS, SWEEP, Store
from npdraw_dist.system import model_files
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import Holder, living
from npdraw_dist.system.storage import in_threads, open_filesystem, path_of

HEAD = ("run", "state", "stages", "written", "seconds", "numbers")
BROKEN = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError)  # errors of damaged files


@dataclass(frozen=True)
class Progress:
    """What a run has done. stages: the finished ones, as text. numbers: the scores of its model, as text."""

    complete: bool
    stages: str
    seconds: str = ""
    numbers: str = ""


@dataclass(frozen=True)
class Folder:
    """The folder of a run or a sweep. files: the names of its files. written: when the last one was."""

    store: Store
    files: frozenset[str]
    written: datetime | None

    @property
    def is_sweep(self) -> bool:
        return not self.files.isdisjoint((SWEEP, COMPARISON))

    @property
    def is_run(self) -> bool:
        return self.is_sweep or self.files >= {CONFIG, OPENINGS}

    def row(self, holder: Holder | None, at_work: bool) -> tuple[str, ...]:
        """The cells below HEAD. holder: the last owner of the run's lease. at_work: whether it is at work."""
        try:
            done = Progress(BEST in self.files, "a sweep") if self.is_sweep else progress_of(self.store)
        except BROKEN as error:
            done = Progress(False, "unreadable", numbers=" ".join(str(error).split()))
        if at_work:
            state = "running"
        elif done.complete:
            state = "finished"
        else:
            state = "stopped" if holder is None or holder.released else "interrupted"
        written = "" if self.written is None else f"{self.written.astimezone():%Y-%m-%d %H:%M}"
        return self.store.name, state, done.stages, written, done.seconds, done.numbers


def progress_of(store: Store) -> Progress:
    """The finished stages of a run, their seconds, and its numbers. Raises one of BROKEN on damaged files."""
    known, metrics = store.config().stage_names, store.metrics()
    folders = {stage: FOLDERS[stage] for stage in known if stage in FOLDERS}
    manifests = {
        stage: store.read_json(folder, MANIFEST)
        for stage, folder in folders.items()
        if store.has(folder, MANIFEST)
    }
    seconds = sum(float(manifest.get("seconds", 0.0)) for manifest in manifests.values())
    seconds += float(metrics.get("sample/seconds", 0.0))
    names = [*manifests, *(["sample"] if metrics else [])]
    complete = len(names) == len(known)
    stages = "all" if complete else ", ".join(names) or "none"
    return Progress(complete, stages, f"{seconds:,.0f}", numbers_of(store))


def numbers_of(store: Store) -> str:
    """The scores that the run's model states: those of the run, or better ones of `npdraw evaluate`."""
    if not store.has("model", model_files.CONFIG):
        return ""
    results = store.read_json("model", model_files.CONFIG).get("results")
    if not results:
        return ""
    scores = format_metrics(results, "nll_iwae", "bits_per_dim")
    return f"{scores} ({results['n']:,} {results['split']} images)"


def rows_of(storage: str) -> list[tuple[str, ...]]:
    """A row below HEAD for each run or sweep in `storage`, the one that was written last first.

    Other folders are left out. Raises UserError if the storage cannot be opened.
    """
    filesystem, root = open_filesystem(storage)
    try:
        found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except NotADirectoryError:
        raise UserError(f"--storage {storage} is a file; give the folder of the runs") from None
    runs = [one for one in in_threads(_opened, _folders(filesystem, found)) if one is not None and one.is_run]
    runs.sort(key=lambda one: 0.0 if one.written is None else -one.written.timestamp())
    owners = living(filesystem, [one.store.root for one in runs])
    return in_threads(lambda pair: pair[0].row(*pair[1]), zip(runs, owners, strict=True))


def _folders(filesystem: fs.FileSystem, found: list[fs.FileInfo]) -> Iterator[Store]:
    """The folders in a listing whose names are UTF-8, which those of runs are."""
    for info in found:
        with contextlib.suppress(UserError):
            path = path_of(info)
            if info.type == fs.FileType.Directory:
                yield Store(filesystem, path)


def _opened(store: Store) -> Folder | None:
    """Lists the files of a folder; None if this user may not."""
    try:
        found = store.filesystem.get_file_info(fs.FileSelector(store.root, allow_not_found=True))
    except OSError:
        return None
    files = [info for info in found if info.type == fs.FileType.File]
    written = [info.mtime for info in files if info.mtime is not None]
    return Folder(store, frozenset(info.base_name for info in files), max(written, default=None))
