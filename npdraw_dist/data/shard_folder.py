"""A folder of canonical shards, or of their parses, which a run that was killed can continue to write.

<root>/<split>/<shard>.<suffix> is a shard. A sidecar, <root>/.done/<shard>.json, lists the facts of some
shards, has the name of the first, and is written after them; a shard that no sidecar lists is made again.
<root>/.done/source.json records what the shards are made from. The driver of a resumed run reads the
sidecars, not the shards.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pyarrow import fs

from npdraw_dist.data.rows import RejectLine
from npdraw_dist.data.splits import Split
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.landmarks import Landmarks
from npdraw_dist.system.storage import (
    PARTIAL,
    in_threads,
    is_file,
    list_files,
    read_bytes,
    write_bytes,
    write_text,
)

DONE, MARKER = ".done", "source.json"


@dataclass(frozen=True)
class ShardFacts:
    """What a sidecar states about a shard.

    file: path below the root; None if the shard has no good row. seconds, core_seconds: wall-clock time, and
    CPU time of the thread, to read and encode the shard. digest: its `parquet.digest_of`, hexadecimal.
    left_out: as in `Rows`. numbers: further values that the writer records, such as sums of errors.
    """

    shard: str
    split: Split
    file: str | None
    rows: int
    bytes: int
    seconds: float
    core_seconds: float
    digest: str = "0"
    rejects: list[RejectLine] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards.

    made_from: fingerprint of what determines the content of the shards. suffix: suffix of their files.
    """

    filesystem: fs.FileSystem
    root: str
    made_from: str
    suffix: str = "parquet"

    def owner(self) -> str | None:
        """The fingerprint that `claim` last recorded, or None. Raises UserError if its file is damaged."""
        marker = f"{self.root}/{DONE}/{MARKER}"
        if not is_file(self.filesystem, marker):
            return None
        try:
            return str(json.loads(read_bytes(self.filesystem, marker))["made_from"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{marker} is damaged ({error}); delete the folder {self.root}") from None

    def claim(self) -> None:
        """Records `made_from`. Removes partial files, and all files if they are made from something else."""
        if (owner := self.owner()) != self.made_from:
            if owner is not None:
                self.filesystem.delete_dir(self.root)
            marker = json.dumps({"made_from": self.made_from})
            write_text(self.filesystem, f"{self.root}/{DONE}/{MARKER}", marker)
        for path, _ in list_files(self.filesystem, self.root):
            if path.endswith(PARTIAL):
                self.filesystem.delete_file(path)

    def landmarks(self) -> Landmarks | None:
        """The file by which other nodes check that they see a claimed folder; None for a folder at a URI."""
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            return None
        return Landmarks.of("the folder", "--storage or --out", self.root, f"{DONE}/{MARKER}")

    def path(self, shard: str, split: str) -> str:
        """The path of a shard's file below the root."""
        return f"{split}/{shard}.{self.suffix}"

    def write(self, facts: ShardFacts, content: bytes) -> ShardFacts:
        """Writes a shard; returns the facts, which `finish` needs. A shard without rows has no file."""
        path = f"{self.root}/{self.path(facts.shard, facts.split)}"
        if facts.file is not None:
            write_bytes(self.filesystem, path, content)
        elif is_file(self.filesystem, path):  # a file that an earlier call wrote
            self.filesystem.delete_file(path)
        return facts

    def finish(self, shards: Sequence[ShardFacts]) -> None:
        """Writes the sidecar of at least one written shard."""
        sidecar = f"{self.root}/{DONE}/{shards[0].shard}.json"
        write_text(self.filesystem, sidecar, json.dumps([asdict(facts) for facts in shards]))

    def done(self) -> dict[str, ShardFacts]:
        """Shard name -> facts of each complete shard: one in a sidecar, with a file of the recorded size."""
        start, sizes = f"{self.root}/{DONE}/", dict(list_files(self.filesystem, self.root))
        sidecars = [p for p in sizes if p.startswith(start) and p.endswith(".json") and p != start + MARKER]
        texts = in_threads(lambda path: read_bytes(self.filesystem, path), sidecars)
        found = [ShardFacts(**facts) for text in texts for facts in json.loads(text)]
        return {
            facts.shard: facts
            for facts in found
            if facts.file is None or sizes.get(f"{self.root}/{facts.file}") == facts.bytes
        }


@dataclass(frozen=True)
class Written:
    """The shards of the splits `of` after a call of `ingest`. new: number of images that the call wrote.

    driver_s: CPU seconds that this process spent on reading and encoding the shards; 0 if Ray tasks do
    this work.
    """

    shards: Sequence[ShardFacts]
    new: int
    of: tuple[Split, ...]
    driver_s: float = 0.0

    @property
    def images(self) -> int:
        return sum(facts.rows for facts in self.shards)

    @property
    def rejects(self) -> int:
        return sum(len(facts.rejects) for facts in self.shards)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of images that the source left out."""
        return dict(sorted(sum((Counter(facts.left_out) for facts in self.shards), Counter()).items()))

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of images."""
        return {split: sum(f.rows for f in self.shards if f.split == split) for split in self.of}

    @property
    def digests(self) -> dict[str, str]:
        """Split -> hexadecimal digest of its rows, independent of their order and shards."""
        sums = {split: sum(int(f.digest, 16) for f in self.shards if f.split == split) for split in self.of}
        return {split: f"{total % 2**128:032x}" for split, total in sums.items()}

    def files(self) -> list[Mapping[str, object]]:
        """The path, split, number of rows and size in bytes of each file."""
        names = ("file", "split", "rows", "bytes")
        return [{name: getattr(s, name) for name in names} for s in self.shards if s.file is not None]
