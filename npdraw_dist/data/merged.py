"""Many small shards as fewer large ones, so that no process has work that grows with their number.

Each shard costs the driver requests, memory and a message. Shards that follow each other are read as one, as
long as it fits in a task's memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.data.splits import Split

FEW = 1024  # shards of a split that stay as they are: enough for the cores of a cluster, and little work
MOST_BYTES = 64 << 20  # of the images of a merged shard


@dataclass(frozen=True)
class MergedShard:
    """Shards that follow each other in a split, read as one."""

    name: str
    split: str
    shards: tuple[Shard, ...]

    def read(self) -> Rows:
        """Raises UserError if one of the shards is unreadable."""
        return Rows.cat([shard.read() for shard in self.shards])


@dataclass(frozen=True)
class MergedSource:
    """`source` with its shards merged where a split has more than FEW of them."""

    source: Source
    data: DataConfig

    def shards(self, split: Split) -> list[Shard]:
        return merged(self.source.shards(split), split, most_merged(self.data))

    def count(self, split: Split) -> int | None:
        return self.source.count(split)

    def facts(self) -> dict[str, Any]:
        return self.source.facts()

    def inputs(self) -> Inputs:
        return self.source.inputs()


def most_merged(data: DataConfig) -> int:
    """Shards that are read as one at most. A shard of unknown length counts as `data.shard_rows` images."""
    return max(MOST_BYTES // (data.shard_rows * math.prod(data.shape)), 1)


def merged(shards: Sequence[Shard], split: Split, most: int) -> list[Shard]:
    """At most `most` shards as one. Their number is in the name, so that it names the same rows always."""
    each = min(len(shards) // FEW, most)
    if each <= 1:
        return list(shards)
    return [
        MergedShard(f"{split}-{number:05d}x{each}", split, tuple(shards[start : start + each]))
        for number, start in enumerate(range(0, len(shards), each))
    ]
