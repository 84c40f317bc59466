"""The data of a run, recorded once in <run>/inputs.parquet and compared at each later start.

And, by a model's folder, what is known of its training: its run, splits and data, and single images of these.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pyarrow import fs
from torch import Tensor

from npdraw_dist.config.load import read_yaml
from npdraw_dist.config.schema import DataConfig, Experiment
from npdraw_dist.config.spec import Spec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.core.storage import display_path, is_file, open_filesystem, read_bytes
from npdraw_dist.data import identity
from npdraw_dist.data.identity import Identity, compare, identify
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import DONE, MARKER
from npdraw_dist.data.shards import DataChanged, Source, open_source, unchanged
from npdraw_dist.data.splits import Split
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, INPUTS, OPENINGS, Store

READ_DATA = ("bank", "parse")  # the stages that read the data; later ones read parses
SEEN: tuple[Split, ...] = ("train", "valid")


def read_digest(store: Store) -> str | None:
    """The digest of the run's data, hexadecimal; None if they are not recorded."""
    recorded = read_inputs(store)
    return None if recorded is None else recorded.digest


def read_inputs(store: Store) -> Identity | None:
    """The recorded files; None before the first start, and after `forget`."""
    return identity.load(store.filesystem, store.path(INPUTS)) if store.has(INPUTS) else None


def claim(experiment: Experiment, store: Store, needed: bool | None = None) -> bool:
    """Claims the run folder; returns whether the run is new, whose data are then recorded.

    needed: whether a later start has to find the data; if not given, unless the stages that read them have
    finished. Raises UserError that names the settings that differ, or the files of the data.
    """
    if not store.has(CONFIG):
        source = open_source(experiment.data, experiment.seed)  # a wrong path is reported before writing
        fresh = store.claim(experiment)
        _write(store, experiment, identify(source.inputs))
        return fresh
    store.claim(experiment)
    recorded = read_inputs(store)
    if recorded is not None:
        _require_data(experiment, store, recorded, needed)
    return False


def _require_data(experiment: Experiment, store: Store, recorded: Identity, needed: bool | None) -> None:
    """Raises UserError if data.path does not hold the recorded data; else records their times and place.

    They may be gone where they are not needed.
    """
    if needed is None:
        readers = [FOLDERS[stage] for stage in READ_DATA if stage in experiment.stage_names]
        needed = not all(store.has(folder, "manifest.json") for folder in readers)
    needed = needed or experiment.data.path != recorded.setting
    try:  # a set that nobody will read is not downloaded again
        source = open_source(experiment.data, experiment.seed, download=needed)
    except UserError:
        if needed:
            raise
        return
    found = compare(recorded, source.inputs)
    if found.changes and found.identity.root != recorded.root:
        raise UserError(
            f"data.path {experiment.data.path} holds other data than those of run {store.shown()} "
            f"({recorded.root}): {found}; take another --name, or give the path of its data"
        )
    if found.changes:
        drop_unfinished_parses(store)
        raise DataChanged(
            f"the data of run {store.shown()} changed: {found}; take another --name, or put the data back"
        )
    if replace(found.identity, setting=experiment.data.path) != recorded:
        _write(store, experiment, found.identity)


def drop_unfinished_parses(store: Store) -> None:
    """Forgets the shards of a stage `parse` that was killed: some may be of the data that were changed."""
    folder = FOLDERS["parse"]
    if not store.has(folder, "manifest.json") and store.has(folder, DONE, MARKER):
        store.filesystem.delete_file(store.path(folder, DONE, MARKER))


def folders(store: Store, stages: Sequence[str]) -> list[Landmarks]:
    """What every node has to see for `stages`: the run folder and the data, as far as they are local."""
    recorded = read_inputs(store) if set(stages) & set(READ_DATA) else None
    data = None if recorded is None else recorded.landmarks()
    return store.landmarks() + ([] if data is None else [data])


def source_of(experiment: Experiment, store: Store) -> Source:
    """The data of the run, where they are now. Raises UserError if they are not there."""
    return open_source(experiment.data, experiment.seed)


def forget(store: Store) -> None:
    """Drops the record of a run that holds nothing made from its data, so that they may be mended."""
    if store.has(INPUTS):
        store.filesystem.delete_file(store.path(INPUTS))


def _write(store: Store, experiment: Experiment, found: Identity) -> None:
    """Writes or replaces the record, with today's places and times."""
    identity.save(replace(found, setting=experiment.data.path), store.filesystem, store.path(INPUTS))


@contextmanager
def reading(experiment: Experiment, store: Store, stage: str) -> Iterator[tuple[Source, str]]:
    """The data of the run, and their digest, for a stage that reads them inside the block.

    Raises DataChanged if they are not those of the record at the end of it, also after a UserError.
    """
    source, recorded = source_of(experiment, store), read_inputs(store)
    if recorded is None:
        recorded = identify(source.inputs)
        _write(store, experiment, recorded)
    with unchanged(experiment.data, experiment.seed, recorded, f"the stage {stage}"):
        yield source, recorded.digest


def find_run(model: str) -> tuple[str, dict[str, Any]] | None:
    """The run folder that holds a model folder, and its config with the data's last path; None: in no run.

    Every run has OPENINGS; a config.yaml alone may be of another program.
    """
    filesystem, path = open_filesystem(model)
    folder = path.rpartition("/")[0]
    config, inputs = f"{folder}/{CONFIG}", f"{folder}/{INPUTS}"
    if not (is_file(filesystem, config) and is_file(filesystem, f"{folder}/{OPENINGS}")):
        return None
    values = read_yaml(read_bytes(filesystem, config).decode(), display_path(filesystem, config))
    if is_file(filesystem, inputs):
        values["data"] |= {"path": identity.load(filesystem, inputs).setting}
    is_local = isinstance(filesystem, fs.LocalFileSystem)  # the model's path may be a link, or "."
    return folder if is_local else model.rstrip("/").rpartition("/")[0], values


def record_opening_of(model: str, by: str) -> None:
    """Notes in the run of a model, if it is in one, that its test split was opened by a command."""
    run = find_run(model)
    if run is not None:
        with contextlib.suppress(OSError):  # a run that may only be read
            Store(*open_filesystem(run[0])).record_opening(by)


def require_split(model: str, spec: Spec, data: DataConfig, seed: int | None) -> int:
    """The seed of the splits of `data`, so that no image of the model's training is scored as held out.

    seed: as the user gave it, for a model that does not know its own. Raises UserError if there is none, or
    if seed, fractions or `split_by` contradict those of the model.
    """
    known = spec.data
    if known is None:
        if seed is None:
            raise UserError(
                f"--model {model} does not state the seed of its splits, so images of its training could be "
                "scored as held out; give the seed of its run as --split-seed"
            )
        return seed
    if seed not in (None, known.seed):
        raise UserError(
            f"--split-seed is {seed}, but the splits of --model {model} have the seed {known.seed}"
        )
    if data.source == known.source:
        for name in ("valid_fraction", "test_fraction", "split_by"):
            own, stated = getattr(known, name), getattr(data, name)
            if stated != own:
                told = [f"{value:g}" if isinstance(value, float) else value for value in (stated, own)]
                raise UserError(f"--data.{name} is {told[0]}, but --model {model} was trained with {told[1]}")
    return known.seed


class SplitImages:
    """Images of a split of a model's data: those that its run parsed, else those of the source.

    A model that is in no run names its source; there are no images if that needs a path, or would have to be
    downloaded. The first test image that is read is an opening of the run's test split, recorded as one by
    `command`.
    """

    def __init__(self, model_folder: str, spec: Spec, command: str, split: Split = "test") -> None:
        filesystem, path = open_filesystem(model_folder)
        root = f"{path.rpartition('/')[0]}/{FOLDERS['parse']}"
        parsed = filesystem.get_file_info(f"{root}/{split}").type == fs.FileType.Directory
        self._model, self._command, self._split = model_folder, command, split
        self._parses = Parses.of_split(filesystem, root, split) if parsed else None
        self._source = None if parsed else _source(model_folder, spec)
        self._opened = split != "test"
        self._lengths: dict[int, int] = {}  # of the shards that were read
        self._shard = lru_cache(1)(self._read)

    def __len__(self) -> int:
        if self._parses is not None:
            return len(self._parses)
        return 0 if self._source is None else self._source.count(self._split) or 0

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (1, C, H, W). Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._split} image {index}; there are {len(self)}")
        if not self._opened:
            record_opening_of(self._model, self._command)
            self._opened = True
        if self._parses is not None:
            return self._parses.at(np.array([index])).images
        for number in self._numbers():
            length = self._lengths.get(number)
            if length is None or index < length:
                rows = self._shard(number)
                if index < len(rows):
                    return torch.from_numpy(rows.images[index : index + 1])
                length = len(rows)
            index -= length
        raise IndexError(f"the last {self._split} images are unreadable")

    def find(self, image_id: str) -> Tensor | None:
        """The image of this id, uint8 (1, C, H, W); None if there is none."""
        if self._parses is not None:
            row = self._parses.find(image_id)
            return None if row is None else self._parses.at(np.array([row])).images
        rows = next((rows for rows in map(self._shard, self._numbers()) if image_id in rows.ids), None)
        return None if rows is None else torch.from_numpy(rows.images[rows.ids.index(image_id)][None])

    def _numbers(self) -> range:
        return range(len(self._source.shards(self._split)) if self._source else 0)

    def _read(self, number: int) -> Rows:
        assert self._source is not None
        rows = self._source.shards(self._split)[number].read()
        self._lengths[number] = len(rows)
        return rows


def image_with_id(model_folder: str, spec: Spec, image_id: str) -> Tensor:
    """The training or validation image of this id, uint8 (1, C, H, W). Raises KeyError if there is none."""
    for split in SEEN:
        image = SplitImages(model_folder, spec, "", split).find(image_id)
        if image is not None:
            return image
    raise KeyError(image_id)


def _source(model_folder: str, spec: Spec) -> Source | None:
    """The data source of a model's training, with its splits; None if it is not here.

    Its settings are those of the model's run, else what the model states (no path).
    """
    if spec.data is None:
        return None
    run = find_run(model_folder)
    data = spec.data.data(spec.image_shape) if run is None else DataConfig.model_validate(run[1]["data"])
    try:
        return open_source(data, spec.data.seed, download=False)
    except UserError:
        return None
