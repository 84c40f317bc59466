"""The run folder <storage>/<name>, where each stage finds its input and writes its output.

The manifest of a stage states a fingerprint, a hash of the settings that decide its output and of those that
decide the output of the stages before it.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.config.load import build, differences, dump, read_yaml, with_changes
from npdraw_dist.config.networks import CONDITIONS, PriorNetwork
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.vocabulary import Vocabulary
from npdraw_dist.data.parses import Conditions, Parses
from npdraw_dist.data.shards import Canonical
from npdraw_dist.system.errors import StorageFailed, UserError
from npdraw_dist.system.landmarks import Landmarks
from npdraw_dist.system.lease import LEASE_FOLDER, Lease
from npdraw_dist.system.made_by import command_line, fingerprint, stamp, version_of
from npdraw_dist.system.storage import (
    copy,
    display_path,
    is_object_store,
    local_copy,
    open_filesystem,
    read_bytes,
    write_text,
)

CONFIG, METRICS, OPENINGS = "config.yaml", "metrics.json", "test_split.json"
# In the folder of a sweep: its plan, which is written first, and its best trial, which is written last.
SWEEP, COMPARISON, BEST = "sweep.json", "comparison.json", "best.yaml"
VOCABULARY = "vocabulary.json"  # in data/: the classes and words that a condition can name
PROBE = ".writable"  # a file that is written and deleted, to test whether the storage can be written
LONGEST_NAME = 200  # bytes; file systems allow 255
FOLDERS = {"data": "data", "bank": "bank", "parse": "parses", "prior": "prior", "vae": "vae"}  # by stage


class Store:
    """A run folder on any filesystem that pyarrow or fsspec knows. Paths are relative to the folder.

    elsewhere: stage folder -> folder that contains it instead of the run (trials of a sweep share stages).
    """

    def __init__(
        self, filesystem: fs.FileSystem, root: str, elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self.filesystem, self.root, self.elsewhere = filesystem, root, dict(elsewhere or {})

    @classmethod
    def open(cls, storage: str, name: str) -> "Store":
        """The run `name` in the folder or URI `storage`. Creates nothing. Raises UserError on a bad name."""
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"--name {name!r} is not a run name; give a word without slashes")
        if (size := len(name.encode())) > LONGEST_NAME:
            raise UserError(f"--name has {size} bytes; a folder name has at most {LONGEST_NAME}")
        filesystem, path = open_filesystem(storage)
        return cls(filesystem, f"{path}/{name}")

    @property
    def name(self) -> str:
        return self.root.rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def landmarks(self) -> list[Landmarks]:
        """The file by which other nodes check that they see the run folder; [] if the run is at a URI."""
        if not self.is_local:
            return []
        # A shared stage of a sweep, in <run>/cache/<stage>, has no config of its own.
        paths = (CONFIG, f"../../{CONFIG}")
        found = [Landmarks.of("the storage", "--storage", self.root, path) for path in paths]
        return [one for one in found if one is not None][:1]

    def path(self, *parts: str) -> str:
        root = self.elsewhere.get(parts[0], self.root) if parts else self.root
        return "/".join((root, *parts))

    def shown(self, *parts: str) -> str:
        """The path for messages; it begins with the URI's scheme if the run is in an object store."""
        return display_path(self.filesystem, self.path(*parts))

    def has(self, *parts: str) -> bool:
        return self.filesystem.get_file_info(self.path(*parts)).type != fs.FileType.NotFound

    def parses(self, split: str, experiment: Experiment | None = None) -> Parses:
        """The images of a split, with their parses if the run has any.

        experiment: from `with_vocabulary`; needed if the batches must contain the prior's conditions.
        """
        conditions = None
        if experiment is not None and experiment.takes_condition:
            classes = self.read_json("data", VOCABULARY)["classes"]
            conditions = Conditions(Vocabulary.of(experiment.prior), classes)
        parses = (self.filesystem, self.path("parses")) if self.has("parses", MANIFEST) else None
        return Parses.of_split(self.shards(), split, parses, conditions)

    def shards(self) -> Canonical:
        """The images of a run whose stage `data` has finished. Raises UserError if they are gone."""
        root = self.read_json("data", MANIFEST).get("root")
        found = Canonical.at(*(open_filesystem(root) if root else (self.filesystem, self.path("data"))))
        if found is None:
            raise UserError(f"the images of run {self.shown()} are not in {root or self.shown('data')}")
        return found

    def with_vocabulary(self, experiment: Experiment) -> Experiment:
        """Adds the classes or words of the images to `experiment`, unless init.model has set them.

        Raises UserError if the prior takes a condition that the images do not have.
        """
        prior = experiment.prior
        if not experiment.takes_condition or prior.vocabulary:
            return experiment
        name = CONDITIONS[prior.condition].entries
        found = self.read_json("data", VOCABULARY)[name]
        if not found:
            raise UserError(
                f"prior.condition is {prior.condition}, and the images of data.source "
                f"{experiment.data.source} have no {name}"
            )
        return with_changes(experiment, {"prior": {"vocabulary": found}})

    def require_own(self) -> None:
        """Raises UserError if a new run's folder has files other than those that a killed start leaves."""
        own = (LEASE_FOLDER, OPENINGS, CONFIG, PROBE)  # also prefixes of the names of unfinished files
        with contextlib.suppress(OSError):  # `make_folder` reports the error
            found = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
            if others := sorted(name for info in found if not (name := info.base_name).startswith(own)):
                raise UserError(
                    f"{self.shown()} holds {others[0]} and is no run; take another --name or --storage"
                )

    def make_folder(self) -> None:
        """Creates the run folder. Raises UserError if the storage cannot be written."""
        probe = self.path(PROBE)
        try:
            self.filesystem.create_dir(self.root, recursive=True)
            write_text(self.filesystem, probe, "")
            self.filesystem.delete_file(probe)
        except (OSError, pa.ArrowException, NotImplementedError) as error:
            shown = error or type(error).__name__
            raise UserError(f"cannot write to the storage {self.shown()}: {shown}") from None

    def remove(self, *parts: str) -> None:
        if self.has(*parts):
            self.filesystem.delete_dir(self.path(*parts))

    def read_json(self, *parts: str) -> dict[str, Any]:
        try:
            return dict(json.loads(read_bytes(self.filesystem, self.path(*parts))))
        except OSError as error:
            raise StorageFailed(f"{self.shown(*parts)} cannot be read now: {error}") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.shown(*parts)} is unreadable: {error}") from None

    def write_json(self, values: Mapping[str, Any], *parts: str) -> None:
        write_text(self.filesystem, self.path(*parts), json.dumps(values, indent=2) + "\n")

    def metrics(self) -> dict[str, Any]:
        """The final numbers of the run; {} before the stage `sample` is done."""
        return self.read_json(METRICS) if self.has(METRICS) else {}

    def openings(self) -> list[dict[str, str]] | None:
        """A record (`when` in UTC, `by`, `command`) of each opening of the test split, oldest first.

        None if the run keeps no record.
        """
        return list(self.read_json(OPENINGS)["opened"]) if self.has(OPENINGS) else None

    def record_opening(self, by: str) -> None:
        """Records that `by` opens the test split. Called before the first test image is read."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = {"when": now, "by": by, "command": command_line()}
        self.write_json({"opened": [*(self.openings() or []), new]}, OPENINGS)

    def write_manifest(self, values: Mapping[str, Any], folder: str) -> None:
        """Writes the manifest of a finished stage, with the version of the package."""
        self.write_json({**values, **stamp()}, folder, MANIFEST)

    @contextlib.contextmanager
    def writing(self, *parts: str) -> Iterator[Path]:
        """Yields a local path for a new file or folder, and copies it to the run at the end of the block."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / parts[-1]
            yield local
            if not is_object_store(self.filesystem):
                self.filesystem.create_dir(self.path(*parts[:-1]), recursive=True)
            copy(fs.LocalFileSystem(), str(local), self.filesystem, self.path(*parts))

    def reading(self, *parts: str) -> AbstractContextManager[Path]:
        """A context with the local path of a file or folder of the run, or of a copy if the run is remote."""
        return local_copy(self.filesystem, self.path(*parts))

    def config(self) -> Experiment:
        """The config of the run. Raises UserError if config.yaml is missing or of another version."""
        text, shown = read_bytes(self.filesystem, self.path(CONFIG)).decode(), self.shown(CONFIG)
        try:
            return build(read_yaml(text, shown))
        except UserError as error:
            text = f"{shown} is not a config of this version: {error}; take another --name"
            raise UserError(text) from None

    def lease(self, what: str = "run") -> Lease:
        """A lease that lets one driver write at a time. Creates the folder. Raises UserError on failure."""
        if not self.has(CONFIG):
            self.make_folder()
        return Lease(self.filesystem, self.root, f"{what} {self.shown()}")

    def claim(self, experiment: Experiment) -> bool:
        """Writes config.yaml, or compares it with the config of the run. Returns whether the run is new.

        Raises UserError if settings differ that a resumed run may not change. The message names them.
        """
        if self.has(CONFIG):
            if changes := differences(self.config().made(), experiment.made()):
                raise UserError(
                    f"run {self.shown()} has another config ({'; '.join(changes)}); take another --name"
                )
            return False
        self.make_folder()
        self.write_json({"opened": []}, OPENINGS)
        write_text(self.filesystem, self.path(CONFIG), dump(experiment))
        return True


def fingerprint_of(experiment: Experiment, stage: str) -> str:
    """The fingerprint of a stage's output. Raises KeyError if the model's kind has no such stage."""
    found, before = {}, ""
    for name, settings in _made(experiment).items():
        found[name] = before = fingerprint({**settings, "input": before})
    return found[stage]


def _made(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Stage -> the settings that decide its output, in the order of the stages."""
    e = experiment.made()
    binarize = e["data"].pop("binarize")  # only the likelihood uses binarised images
    data = {"data": e["data"], "seed": e["seed"]}
    vae = {"vae": e["vae"], "binarize": binarize, "model": e["model"]}
    sample = {"eval": e["eval"]}
    if not experiment.has_parts:
        # Of the grid, a baseline without places uses only the background, which fills edges of moved images.
        edge = {"background": e["grid"]["background"]}
        kind = KINDS[experiment.model.kind]
        if kind.has_places:
            edge["grid"] = e["grid"]
        if kind.has_sequence:
            network = set(PriorNetwork.model_fields)
            edge["prior"] = {name: value for name, value in e["prior"].items() if name in network}
        return {
            "data": data,
            "vae": {**vae, "train": e["train"], "baseline": e["baseline"], "init": e["init"], **edge},
            "sample": sample,
        }
    return {
        "data": data,
        "bank": {name: e[name] for name in ("grid", "bank", "init", "model")},
        "parse": {"parse": e["parse"]},
        "prior": {"prior": e["prior"], "train": e["train"]},
        "vae": vae,
        "sample": sample,
    }


def finished(store: Store, experiment: Experiment, stage: str) -> dict[str, Any] | None:
    """The manifest of a stage, or None if it has not finished.

    Raises UserError if the output was made from another config or other images, or has another format.
    """
    folder = FOLDERS[stage]
    if not store.has(folder, MANIFEST):
        return None
    manifest = store.read_json(folder, MANIFEST)
    version_of(manifest, store.shown(folder))
    images = manifest.get("images_digest")
    other = images is not None and images != store.read_json("data", MANIFEST)["digests"]["train"]
    if other or manifest.get("fingerprint") != fingerprint_of(experiment, stage):
        raise UserError(
            f"{store.shown(folder)} was made from another config or input; delete it or take another --name"
        )
    return manifest


def required(store: Store, experiment: Experiment, stage: str) -> dict[str, Any]:
    """The manifest of a finished stage. Raises UserError if the stage has not finished."""
    manifest = finished(store, experiment, stage)
    if manifest is None:
        raise UserError(f"stage {stage} has not finished in {store.shown()}; add it to --stages")
    return manifest
