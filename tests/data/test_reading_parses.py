"""On Ray: streams of parses give exactly the rows asked for, and shards are those of one process."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data import shard_writer
from npdraw_dist.data.parses import READ_ROWS, Parses, to_parquet
from npdraw_dist.data.prepare import prepare
from npdraw_dist.data.rows import Rows
from npdraw_dist.training.failures import storage_failed
from tests.helpers.in_process import map_here
from tests.helpers.rows import numbered, numbers_of, open_parses, stream

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
LOCAL = fs.LocalFileSystem()
STARTS = np.cumsum([0, 700, 5000, 3, 1024, 2100])


@pytest.fixture(scope="module")
def parses(tmp_path_factory: pytest.TempPathFactory) -> Parses:
    folder = tmp_path_factory.mktemp("parses")
    return numbered(folder, [range(*ends) for ends in pairwise(STARTS)])


@pytest.mark.slow
def test_streamed_rows_come_in_the_order_that_is_asked(parses: Parses) -> None:
    # A ring that is read past its end lists a file twice.
    order = [2, 1, 0, 4, 2, 1]
    several = Parses(LOCAL, tuple(parses.files[index] for index in order))
    batches = list(stream(several, [(4000, 9500)]))
    want = np.concatenate([np.arange(STARTS[i], STARTS[i + 1]) for i in order])
    assert numbers_of(batches) == want[4000:9500].tolist()
    assert max(map(len, batches)) <= READ_ROWS
    ranges = [(8000, 8827), (0, 3), (5, 5), (4999, 5001)]
    assert numbers_of(list(stream(parses, ranges))) == [n for ends in ranges for n in range(*ends)]
    assert list(stream(parses, [(5, 5)])) == []
    groups = parses.groups
    mixed = np.random.default_rng(0).permutation(len(groups.rows))
    first = STARTS[groups.file] + groups.start
    rows = np.concatenate([np.arange(first[i], first[i] + groups.rows[i]) for i in mixed])
    found = list(parses.stream_groups(mixed, [(100, 7000), (8000, 8827)]))
    assert numbers_of(found) == [*rows[100:7000], *rows[8000:]]
    assert max(map(len, found)) <= READ_ROWS


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_a_stream_is_read_although_the_workers_hold_every_cpu(parses: Parses) -> None:
    class Worker:
        def rows(self, parses: Parses) -> int:
            return sum(map(len, stream(parses, [(0, len(parses))])))

    cpus = ray.cluster_resources()["CPU"]
    worker: Any = ray.remote(num_cpus=cpus)(Worker).remote()
    assert ray.get(worker.rows.remote(parses), timeout=60) == len(parses)
    ray.kill(worker)


@pytest.mark.slow
def test_a_full_stream_leaves_the_core_to_its_reader(parses: Parses) -> None:
    """Ray's loop ran 1,500 times a second, and made a training in the same process four times slower."""
    batches = stream(parses, [(start, start + 600) for start in range(300)])
    assert len(next(batches))

    def core_seconds_of_a_rest() -> float:
        before = time.process_time()
        time.sleep(1)
        return time.process_time() - before

    # In the first ones it may still fill.
    assert min(core_seconds_of_a_rest() for _ in range(5)) < 0.4


@pytest.mark.slow
def test_a_stream_of_more_than_the_object_store_holds(tmp_path: Path) -> None:
    """Each row comes once, in order, though the reader is slow and the store is full of other objects."""
    count, side = 1 << 14, 112
    images = np.zeros((count, 1, side, side), np.uint8)  # 206 MB
    assert ray.cluster_resources()["object_store_memory"] < images.nbytes
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    for start in range(0, count, 1 << 12):
        rows = slice(start, start + (1 << 12))
        content = to_parquet(Rows([f"{i:05d}" for i in range(*rows.indices(count))], images[rows]))
        write_bytes(LOCAL, str(tmp_path / f"{start:05d}.parquet"), content)
    held = [ray.put(np.full(16 << 20, number, np.uint8)) for number in range(6)]
    seen = []
    for batch in stream(open_parses(LOCAL, str(tmp_path)), [(0, count)]):
        time.sleep(0.1)
        seen += (batch.images[:, 0, 0, 0].int() * 256 + batch.images[:, 0, 0, 1]).tolist()
    assert seen == list(range(count))
    assert [int(ray.get(one)[-1]) for one in held] == list(range(6))


def test_a_node_that_does_not_see_a_shard_of_a_stream_is_named(tmp_path: Path) -> None:
    parses = numbered(tmp_path, [range(2)])
    path = parses.files[0].path
    Path(path).unlink()
    with pytest.raises(ray.exceptions.RayError) as caught:
        list(stream(parses, [(0, 2)]))
    said = f"{path} cannot be read from {ray.util.get_node_ip_address()}, whose disk is not the shared one"
    assert said in str(storage_failed("prior", caught.value))


def test_prepare_in_tasks_writes_what_one_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(shard_rows=300, fraction=0.4)
    in_tasks = prepare(data, 0, str(tmp_path / "tasks"), "webdataset")
    monkeypatch.setattr(shard_writer, "map_items", map_here)
    assert prepare(data, 0, str(tmp_path / "here"), "webdataset") == in_tasks
    for item in in_tasks["files"]:
        tar = (tmp_path / "tasks" / item["file"]).read_bytes()
        assert tar == (tmp_path / "here" / item["file"]).read_bytes()
