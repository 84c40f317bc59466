"""A pretended source of any number of small shards."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pyarrow import fs

from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.rows import Reject, Rows
from npdraw_dist.data.shards import Shard, Source, merged
from npdraw_dist.data.splits import Split


@dataclass(frozen=True, slots=True)
class SmallShard:
    """`rows` images of 2 x 2 pixels that show the shard's number. flawed: and a reject and a blank one."""

    number: int
    rows: int = 2
    flawed: bool = False
    split: str = "train"

    @property
    def name(self) -> str:
        return f"train-{self.number:05d}"

    def read(self) -> Rows:
        images = np.full((self.rows, 1, 2, 2), self.number % 256, np.uint8)
        ids = [f"{self.number}-{i}" for i in range(self.rows)]
        if not self.flawed:
            return Rows(ids, images)
        return Rows(ids, images, None, [Reject(f"bad-{self.number}", "unreadable")], {"blank": 1})


@dataclass(frozen=True)
class ManyShards(Source):
    """`number` shards of `rows` training images each."""

    number: int
    rows: int = 2

    def _shards(self, split: Split) -> list[Shard]:
        return self.shards(split)

    def shards(self, split: Split) -> list[Shard]:
        found = [SmallShard(n, self.rows) for n in range(self.number)] if split == "train" else []
        return merged(found, split, most=2**20)

    def count(self, split: Split) -> int | None:
        return self.number * self.rows if split == "train" else 0

    def facts(self) -> dict[str, Any]:
        return {"source": "pretended"}

    def inputs(self) -> Inputs:
        return Inputs(fs.LocalFileSystem(), "", ())
