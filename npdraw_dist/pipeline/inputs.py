"""Finds the run, the splits and the images that a model was trained on, from the model's folder."""

import contextlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pyarrow import fs
from torch import Tensor

from npdraw_dist.config.load import read_yaml
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.config.spec import Spec
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Canonical, Source, open_source
from npdraw_dist.data.splits import Split
from npdraw_dist.pipeline.store import CONFIG, OPENINGS, Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import display_path, is_file, open_filesystem, read_bytes

SEEN: tuple[Split, ...] = ("train", "valid")


def find_run(model: str) -> tuple[str, dict[str, Any]] | None:
    """The run folder that contains a model folder, and the run's config; None if the model is in no run.

    Every run has the file OPENINGS; a config.yaml without it may belong to another program.
    """
    filesystem, path = open_filesystem(model)
    folder = path.rpartition("/")[0]
    config = f"{folder}/{CONFIG}"
    if not (is_file(filesystem, config) and is_file(filesystem, f"{folder}/{OPENINGS}")):
        return None
    values = read_yaml(read_bytes(filesystem, config).decode(), display_path(filesystem, config))
    is_local = isinstance(filesystem, fs.LocalFileSystem)  # `folder` is resolved; `model` may be "."
    return folder if is_local else model.rstrip("/").rpartition("/")[0], values


def record_opening_of(model: str, by: str) -> None:
    """Records in the model's run, if the model is in a run, that the command `by` opened the test split."""
    run = find_run(model)
    if run is not None:
        with contextlib.suppress(OSError):  # the run may be read-only
            Store(*open_filesystem(run[0])).record_opening(by)


def require_split(model: str, spec: Spec, data: DataConfig, seed: int | None) -> int:
    """The seed that splits `data` as in the model's training, so no training image is scored as held out.

    seed: the user's seed, for a model that does not state one. Raises UserError if neither the user nor the
    model states a seed, or if the user's seed, fractions or `split_by` contradict the model's.
    """
    known = spec.data
    if known is None:
        if seed is None:
            raise UserError(
                f"--model {model} does not state the seed of its splits, so training images could be scored "
                "as held-out ones; give the seed of its run as --split-seed"
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
                shown = [f"{value:g}" if isinstance(value, float) else value for value in (stated, own)]
                raise UserError(
                    f"--data.{name} is {shown[0]}, but --model {model} was trained with {shown[1]}"
                )
    return known.seed


class SplitImages:
    """The images of a split, from the model's run if the run has read them, else from the original source.

    The length is 0 if the source needs an unknown path or a download. Reading the first test image is
    recorded in the run as an opening of the test split by `command`.
    """

    def __init__(self, model_folder: str, spec: Spec, command: str, split: Split = "test") -> None:
        self._model, self._command, self._split = model_folder, command, split
        self._parses = read_images(model_folder, split)
        self._source = _source(model_folder, spec) if self._parses is None else None
        self._opened = split != "test"
        self._lengths: dict[int, int] = {}  # number of a shard -> its length, once it was read
        self._shard = lru_cache(1)(self._read)

    def __len__(self) -> int:
        if self._parses is not None:
            return len(self._parses)
        return 0 if self._source is None else self._source.count(self._split) or 0

    def __getitem__(self, index: int) -> Tensor:
        """An image, uint8 (1, C, H, W). Raises IndexError if `index` is out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no {self._split} image {index}; there are {len(self)}")
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
        """The image with this id, uint8 (1, C, H, W); None if no image has it."""
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


def read_images(model_folder: str, split: Split) -> Parses | None:
    """The images of a split in a model's run; None if there is no run, or the run has not read the split."""
    filesystem, path = open_filesystem(model_folder)
    store = Store(filesystem, path.rpartition("/")[0])
    shards = read_shards(store, split) if store.has(OPENINGS) else None
    return None if shards is None else Parses.of_split(shards, split)


def read_shards(store: Store, split: Split) -> Canonical | None:
    """The shards of a run; None if the run has not read the split, or if the shards are gone."""
    if not store.has("data", MANIFEST) or split not in store.read_json("data", MANIFEST)["splits"]:
        return None
    try:
        return store.shards()
    except UserError:  # prepared data outside the run may be deleted
        return None


def open_images(model: str, data: DataConfig, seed: int, split: Split) -> tuple[Source, str | None]:
    """The source from which to read a split of `data`, and the digest of its training images, if known.

    The source is the shards of the model's run if the run has read this split of the same data, else
    `data.source`. Raises UserError if `data.source` is missing.
    """
    run = find_run(model)
    store = None if run is None else Store(*open_filesystem(run[0]))
    manifest = None
    if run is not None and store is not None and store.has("data", MANIFEST):
        own = DataConfig.model_validate(run[1]["data"])
        if _decisive(own) == _decisive(data) and run[1]["seed"] == seed:
            manifest = store.read_json("data", MANIFEST)
            if (shards := read_shards(store, split)) is not None:
                return shards.source(data, seed), manifest["digests"]["train"]
    source = open_source(data, seed)
    if manifest is not None and manifest["stamp"] == source.stamp:
        return source, manifest["digests"]["train"]
    return source, None if source.canonical is None else source.canonical.manifest.digests.get("train")


def _decisive(data: DataConfig) -> dict[str, Any]:
    """The settings that decide which images are read."""
    return {**data.made(), "path": data.path, "binarize": None}


def image_with_id(model_folder: str, spec: Spec, image_id: str) -> Tensor:
    """The training or validation image with this id, uint8 (1, C, H, W). Raises KeyError if there is none."""
    for split in SEEN:
        image = SplitImages(model_folder, spec, "", split).find(image_id)
        if image is not None:
            return image
    raise KeyError(image_id)


def _source(model_folder: str, spec: Spec) -> Source | None:
    """The data source of a model's training, with its splits; None if it is not on this machine.

    The settings come from the model's run, or else from the model's spec, which has no path.
    """
    if spec.data is None:
        return None
    run = find_run(model_folder)
    data = spec.data.data(spec.image_shape) if run is None else DataConfig.model_validate(run[1]["data"])
    try:
        return open_source(data, spec.data.seed, download=False)
    except UserError:
        return None
