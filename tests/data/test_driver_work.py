"""The driver's requests and bytes grow with merged shards, of which there are no more for more data."""

import itertools
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.data import shard_writer, shards
from npdraw_dist.data.parses import Parses, to_parquet, write_list
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import Encoded, ShardFolder, ShardWriter, Written, write_shards
from npdraw_dist.data.shards import Source
from tests.helpers.counting import Counting
from tests.helpers.in_process import map_here
from tests.helpers.many_shards import DATA, many_shards

RUNS = itertools.count()
FEW = 64


def encode(rows: Rows) -> Encoded:
    return Encoded(to_parquet(rows))


@dataclass
class Driver:
    """What the driver did to write the shards of a source, to start again, and to open what it wrote."""

    counting: Counting
    root: str
    shards: int = 0

    def write(self, source: Source) -> Written:
        folder = ShardFolder(fs.PyFileSystem(self.counting), self.root, "made from")
        folder.claim()
        self.shards = len(source.shards("train"))
        written = write_shards(ShardWriter(folder, encode), source, DATA, lambda images, rate: None)
        rows = {facts.file: facts.rows for facts in written.shards if facts.file}
        write_list(folder.filesystem, self.root, {"train": rows})
        return written

    def open(self) -> Parses:
        return Parses.of_split(fs.PyFileSystem(self.counting), self.root, "train")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The work of tasks is done here too, but not counted."""
    counting = Counting()

    def in_tasks(items: Sequence[Any], work: Callable[[Any], Any], *rest: Any, **more: Any) -> Iterator[Any]:
        found = map_here(items, work)
        while True:
            with counting.uncounted():
                result = next(found, None)
            if result is None:
                return
            yield result

    monkeypatch.setattr(shard_writer, "map_items", in_tasks)
    monkeypatch.setattr(shards, "FEW", FEW)
    return Driver(counting, str(tmp_path / "run"))


def worked(driver: Driver, number: int, rows: int) -> dict[str, int]:
    driver.root = str(Path(driver.root).parent / f"run{next(RUNS)}")
    driver.counting.counts = {"requests": 0, "bytes": 0}
    written = driver.write(many_shards(number, rows))
    assert written.images == number * rows
    again = driver.write(many_shards(number, rows))
    assert (again.images, again.new) == (number * rows, 0)
    assert len(driver.open()) == number * rows
    return dict(driver.counting.counts)


def test_the_driver_does_the_same_for_more_shards_and_more_images(driver: Driver) -> None:
    base = worked(driver, FEW, 1)
    assert driver.shards == FEW
    assert 2 * FEW < base["requests"] < 8 * FEW  # it reads sidecars and hashes of a few images here
    shards = worked(driver, 8 * FEW, 1)
    assert driver.shards == FEW
    images = worked(driver, FEW, 20)
    for more in (shards, images):
        assert more["requests"] == base["requests"]


def test_many_images_are_compared_in_tasks(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """From some number of ids on the driver reads no hash: fewer bytes than those of the ids."""
    few = worked(driver, 64, 50)
    monkeypatch.setattr("npdraw_dist.data.repeats.IDS_AT_ONCE", 1600)
    many = worked(driver, 64, 50)
    assert few["bytes"] - many["bytes"] > 2 * 64 * 50 * 16  # written and read again
    assert few["requests"] - many["requests"] == 2 * 64
    assert worked(driver, 64, 500)["bytes"] < 1.05 * many["bytes"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_shards_take_less_than_a_gigabyte(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one process here: driver and tasks."""
    monkeypatch.setattr(shards, "FEW", 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = worked(driver, 1_000_000, 1)
    assert driver.shards < 2048
    assert counts["requests"] < 8 * driver.shards
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
