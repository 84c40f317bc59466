"""What is known of the training of a model: its run, splits and data, and single images of these."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pyarrow import fs
from torch import Tensor

from npdraw_dist.config.load import read_yaml
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.config.spec import Spec, SplitSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, open_filesystem, read_bytes
from npdraw_dist.data import identity
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Source, open_source
from npdraw_dist.data.splits import Split
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, INPUTS, record_opening

SEEN: tuple[Split, ...] = ("train", "valid")


def find_run(model: str) -> tuple[str, dict[str, Any]] | None:
    """The run folder that holds a model folder, and its config; None if the model is in no run.

    The path of the data is the one of the last start, if they were moved after the first.
    """
    filesystem, path = open_filesystem(model)
    folder = path.rpartition("/")[0]
    config, inputs = f"{folder}/{CONFIG}", f"{folder}/{INPUTS}"
    if filesystem.get_file_info(config).type != fs.FileType.File:
        return None
    values = read_yaml(read_bytes(filesystem, config).decode(), display_path(filesystem, config))
    if filesystem.get_file_info(inputs).type == fs.FileType.File:
        values["data"] |= {"path": identity.load_metadata(filesystem, inputs).get("setting")}
    return model.rstrip("/").rpartition("/")[0] or ".", values


def record_opening_of(model: str, by: str) -> None:
    """Notes in the run of a model, if it is in one, that its test split was opened by a command."""
    run = find_run(model)
    if run is not None:
        with contextlib.suppress(OSError):  # a run that may only be read
            record_opening(*open_filesystem(run[0]), by)


def compare_data(known: SplitSpec | None, digest: str) -> str:
    """`same`, `other` or `unknown`: whether data of this digest are those that a model was trained on."""
    if known is None or known.inputs is None:
        return "unknown"
    return "same" if digest == known.inputs else "other"


def require_split(model: str, spec: Spec, data: DataConfig, seed: int | None) -> int:
    """The seed of the splits of `data`, so that no image of the model's training is scored as held out.

    seed: as the user gave it, for a model that does not know its own. Raises UserError if there is none, or
    if seed or fractions contradict those of the model.
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
        for name in ("valid_fraction", "test_fraction"):
            own, stated = getattr(known, name), getattr(data, name)
            if stated != own:
                raise UserError(f"--data.{name} is {stated:g}, but --model {model} was trained with {own:g}")
    return known.seed


class HeldOutImages:
    """Images of a split of a model: those that its run parsed, else those of its data source.

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
        for rows in self._shards():
            if index < len(rows):
                return torch.from_numpy(rows.images[index : index + 1])
            index -= len(rows)
        raise IndexError(f"the last {self._split} images are unreadable")

    def find(self, image_id: str) -> Tensor | None:
        """The image of this id, uint8 (1, C, H, W); None if there is none."""
        if self._parses is not None:
            row = self._parses.find(image_id)
            return None if row is None else self._parses.at(np.array([row])).images
        found = (rows for rows in self._shards() if image_id in rows.ids)
        rows = next(found, None)
        return None if rows is None else torch.from_numpy(rows.images[rows.ids.index(image_id)][None])

    def _shards(self) -> Iterator[Rows]:
        return (shard.read() for shard in (self._source.shards(self._split) if self._source else ()))


def image_with_id(model_folder: str, spec: Spec, image_id: str) -> Tensor:
    """The training or validation image of this id, uint8 (1, C, H, W). No test image is read.

    Raises KeyError if there is none.
    """
    for split in SEEN:
        image = HeldOutImages(model_folder, spec, "", split).find(image_id)
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
