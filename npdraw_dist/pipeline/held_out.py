"""Single images of the data that a model was trained on: held-out ones by number, the others by id."""

from typing import Literal

import numpy as np
import torch
from pyarrow import fs
from torch import Tensor

from npdraw_dist.config.spec import Spec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import open_filesystem
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.shards import Source
from npdraw_dist.data.sources import open_source
from npdraw_dist.data.splits import Split
from npdraw_dist.pipeline.model_run import data_of, record_opening_of

SEEN: tuple[Split, ...] = ("train", "valid")


class HeldOutImages:
    """The test images of a model: those that its run parsed, else those of its data source.

    A model that is in no run names its source; there are no images if that needs a path. The first image that
    is read is an opening of the run's test split, recorded as one by `command`. split: `valid` for the
    validation images, whose reading is nothing to record.
    """

    def __init__(
        self, model_folder: str, spec: Spec, command: str, split: Literal["valid", "test"] = "test"
    ) -> None:
        filesystem, path = open_filesystem(model_folder)
        self._model, self._command, self._split = model_folder, command, split
        self._parses = _parses(filesystem, path.rpartition("/")[0], split)
        self._source = _source(model_folder, spec) if self._parses is None else None
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
        assert self._source is not None
        return _read(self._source, self._split, index)


def image_with_id(model_folder: str, spec: Spec, image_id: str) -> Tensor:
    """The training or validation image of this id, uint8 (1, C, H, W). No test image is read.

    Taken from the parses of the model's run, else from its data source. Raises KeyError if there is none.
    """
    filesystem, path = open_filesystem(model_folder)
    run, source = path.rpartition("/")[0], None
    for split in SEEN:
        parses = _parses(filesystem, run, split)
        if parses is not None:
            row = parses.find(image_id)
            if row is not None:
                return parses.at(np.array([row])).images
            continue
        source = source or _source(model_folder, spec)
        for shard in source.shards(split) if source else ():
            rows = shard.read()
            if image_id in rows.ids:
                return torch.from_numpy(rows.images[rows.ids.index(image_id)][None])
    raise KeyError(image_id)


def _parses(filesystem: fs.FileSystem, run: str, split: Split) -> Parses | None:
    """The parses of a run; None if it has none."""
    root = f"{run}/parses"
    found = filesystem.get_file_info(f"{root}/{split}").type == fs.FileType.Directory
    return Parses.of_split(filesystem, root, split) if found else None


def _source(model_folder: str, spec: Spec) -> Source | None:
    """The data source of a model's training, with its splits; None if it is not here."""
    data = data_of(model_folder, spec)
    if data is None or spec.data is None:
        return None
    try:
        return open_source(data, spec.data.seed)
    except UserError:
        return None


def _read(source: Source, split: Split, index: int) -> Tensor:
    for shard in source.shards(split):
        rows = shard.read()
        if index < len(rows):
            return torch.from_numpy(rows.images[index : index + 1])
        index -= len(rows)
    raise IndexError(f"the last {split} images are unreadable")
