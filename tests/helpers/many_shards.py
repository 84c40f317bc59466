"""Simulates the stages of a run over many shards: requests, seconds and peak memory of the driver.

python -m tests.helpers.many_shards --shards 146600 --out FILE.json   (--s3: moto's S3; --ray: Ray's tasks)

Planning, lists, checks, manifests and each shard's requests are those of a real run of prepared images of
3 x 64 x 64. All shards have the same black images. Nothing is clustered or parsed. On a disk the stages bank
and parse read only footers of shards, so seconds without --ray are those of the driver and its requests.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from moto.server import DomainDispatcherApplication
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.bank.build import BankFacts
from npdraw_dist.bank.patches import draw
from npdraw_dist.config.load import resolve
from npdraw_dist.config.prepared import MAKER, MANIFEST
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.data import shards
from npdraw_dist.data.parquet import images_to_parquet, opened, parses_to_parquet
from npdraw_dist.data.parses import Parses, RowRange
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import ShardReader
from npdraw_dist.distributed import tasks
from npdraw_dist.distributed.start import start_ray
from npdraw_dist.pipeline import bank, data, parse, run, stage_job, train_stage
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.storage import open_filesystem, write_bytes, write_text
from npdraw_dist.training.feed import Share
from tests.helpers.rows import Parsed, write_run
from tests.helpers.s3 import s3_server

ROWS, HELD_OUT = 682, 0.015  # rows of a shard; share of shards in each of the splits valid and test
SAME: list[bytes] = []
LINKS = 50_000  # links to a file; file systems allow some 65,000
STAGES = ("data", "bank", "parse", "first start", "second start")
SETTINGS = {
    "bank.size": 16,
    "bank.max_patches": 1000,
    "train.batch_size": 1024,
    "train.eval_images": 1000,
    "data.cache_mb": 64,
}
CALLS = {
    "get_file_info": "HEAD",
    "open_input_file": "GET",
    "open_input_stream": "GET",
    "open_output_stream": "PUT",
    "delete_file": "DELETE",
    "delete_dir": "DELETE",
}


class CountingDisk(fs.LocalFileSystem):  # type: ignore[misc]
    """The local disk. calls: the number of calls by the request that a store would get for each."""

    calls: ClassVar[Counter[str]] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in CALLS:
            CountingDisk.calls[CALLS[name]] += 1
        return super().__getattribute__(name)

    def get_file_info(self, paths_or_selector: Any) -> Any:
        if isinstance(paths_or_selector, fs.FileSelector):
            CountingDisk.calls.update({"HEAD": -1, "LIST": 1})
        return super().get_file_info(paths_or_selector)


@cache
def black() -> Rows:
    return Rows([f"picture/{n:010d}" for n in range(ROWS)], np.zeros((ROWS, 3, 64, 64), np.uint8))


class FooterReader(ShardReader):
    """Reads the footer of a shard only."""

    def __call__(self, file: tuple[str, int]) -> Rows:
        with opened(f"{self.root}/{file[0]}", self.filesystem) as shard:
            assert shard.metadata.num_rows == ROWS
        return black()


def no_patches(
    experiment: Experiment, read: ShardReader, above: int, limit: int, item: bank.Numbered
) -> bank.ShardPatches:
    index, file = item
    rows = read(file)
    return bank.ShardPatches(draw(np.zeros((4, 48), np.uint8), index, 0, above, limit), len(rows), 0.0)


class NoParser(parse.ParseWriter):
    def parse(self, images: NDArray[np.uint8]) -> tuple[PartSequence, NDArray[np.float32]]:
        steps = self.experiment.steps
        none = torch.zeros(len(images), steps, dtype=torch.int64)
        return PartSequence(none.bool(), none, none), np.zeros(len(images), np.float32)


def same_parses(*arguments: Any) -> bytes:
    """The file of a shard's parses, which is the same for all shards."""
    if not SAME:
        SAME.append(parses_to_parquet(*arguments))
    return SAME[0]


def no_clusters(experiment: Experiment, patches: NDArray[np.uint8]) -> tuple[PartBank, BankFacts]:
    size, patch = experiment.bank.size, experiment.grid.patch
    facts = BankFacts(
        k=size, patches=len(patches), objective=0.0, cluster_sizes=[0] * size, exemplar_distance=0.0
    )
    return PartBank(torch.zeros(size, 3, patch, patch)), facts


def prepare(uri: str, count: int) -> None:
    """Writes prepared images of so many shards, which on a disk are links to a few files."""
    filesystem, root = open_filesystem(uri)
    held_out = max(int(count * HELD_OUT), 1)
    splits = {"train": count - 2 * held_out, "valid": held_out, "test": held_out}
    content, files, items = images_to_parquet(black(), "train"), list[str](), list[dict[str, Any]]()
    for split, own in splits.items():
        for number in range(own):
            file = f"{split}/{split}-{number:05d}.parquet"
            files.append(f"{root}/{file}")
            items.append({"file": file, "split": split, "rows": ROWS, "bytes": len(content)})
    local = isinstance(filesystem, fs.LocalFileSystem)
    if local:
        for split in splits:
            Path(root, split).mkdir()

    def write(number: int) -> None:
        if not local or number % LINKS == 0:
            write_bytes(filesystem, files[number], content)
        else:
            os.link(files[number // LINKS * LINKS], files[number])

    sources = range(0, len(files), LINKS)
    for numbers in (sources, [n for n in range(len(files)) if n % LINKS]):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, numbers))
    manifest = {
        "maker": MAKER,
        "shards": "parquet",
        "shape": [3, 64, 64],
        "splits": {split: own * ROWS for split, own in splits.items()},
        "digests": {split: f"{number:032x}" for number, split in enumerate(splits)},
        "classes": [],
        "has_words": False,
        "files": items,
    }
    write_text(filesystem, f"{root}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")


@contextmanager
def without_work(footers: bool, scaled: bool) -> Iterator[None]:
    """Replaces clustering and parsing.

    footers: whether only footers of shards are read. scaled: see `simulate`.
    """
    with ExitStack() as stack:
        changes: list[tuple[Any, str, Any]] = [
            (bank, "shard_patches", no_patches),
            (bank, "_cluster", no_clusters),
        ]
        changes.append((parse, "ParseWriter", NoParser))
        if scaled:
            changes += [(bank, "ENOUGH_SHARDS", 2), (tasks, "MANY", 2)]
        if footers:
            changes.append((shards, "ShardReader", FooterReader))
            changes.append((parse, "parses_to_parquet", same_parses))
        for owner, name, value in changes:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def run_stage(name: str, storage: str, path: str, ray: bool, scaled: bool) -> dict[str, Any]:
    """Runs a stage, or the start of a training up to its first batch, and measures this process."""
    local = "://" not in storage
    if local:
        fs.LocalFileSystem = CountingDisk
    own = {"data.source": "parquet", "data.path": path, "scale.num_workers": int(ray)}
    experiment = resolve("celeba", None, nested(SETTINGS | own))
    if ray:
        start_ray(experiment.scale)
    CountingDisk.calls.clear()
    found, started = {"mb_at_start": _peak_mb()}, time.perf_counter()
    store, images = Store.open(storage, "run"), data.RunData(experiment)
    with without_work(local, scaled):
        if name == "data":
            run.check_run(experiment, store, ["data", "bank", "parse"], images)
            store.claim(experiment)
            data.run(experiment, store, images)
        elif name in ("bank", "parse"):
            {"bank": bank, "parse": parse}[name].run(experiment, store)
        else:
            run.check_run(experiment, store, ["data", "bank", "parse", "prior"], images)
            job = train_stage._make_job(experiment, store, "prior", lambda *_: None, {})  # type: ignore[arg-type, return-value]
            assert job.train is None, "the images are streamed"
            found["driver_mb"] = _peak_mb()  # a worker reads the first batch
            share = Share(experiment.train.batch_size, experiment.seed)
            feed = stage_job.make_feed(job.parses, share, stage_job.row_bytes(experiment))
            _, batch = next(feed.steps(0))
            assert len(batch) == share.batch_size
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "driver_mb": _peak_mb(),
        **found,
        **({"requests": dict(+CountingDisk.calls)} if local else {}),
    }


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, key = name.split(".")
        found.setdefault(section, {})[key] = value
    return found


def _peak_mb() -> int:
    """The peak of this process. (`getrusage` would include the memory of the process that started it.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) >> 10


def simulate(
    folder: str, count: int, ray: bool, requests: Counter[str] | None, scaled: bool = False
) -> dict[str, Any]:
    """Runs the stages, each in a new process.

    requests: those that a server counts; None on a disk. scaled: whether few shards are grouped, and
    chosen for the bank, as very many are.
    """
    path, found = f"{folder}/prepared", dict[str, Any]()
    prepare(path, count)
    context = multiprocessing.get_context("spawn")
    for name in STAGES:
        if requests is not None:
            requests.clear()
        with context.Pool(1) as pool:
            found[name] = pool.apply(run_stage, (name, f"{folder}/runs", path, ray, scaled))
        if requests is not None:
            found[name]["requests"] = dict(requests)
        print(name, found[name], flush=True)
    first = STAGES[: STAGES.index("second start")]
    total = sum(sum(found[name]["requests"].values()) for name in first)
    peak = max(each["driver_mb"] for each in found.values())
    return {"shards": count, "stages": found, "requests": total, "driver_mb": peak}


def simulate_s3(count: int, scaled: bool = False) -> dict[str, Any]:
    requests, respond = Counter[str](), DomainDispatcherApplication.__call__

    def counted(server: Any, request: dict[str, Any], answer: Any) -> Any:
        is_list = "list-type" in request["QUERY_STRING"]
        requests["LIST" if is_list else request["REQUEST_METHOD"]] += 1
        return respond(server, request, answer)

    with mock.patch.object(DomainDispatcherApplication, "__call__", counted), s3_server() as bucket:
        return simulate(f"{bucket}/many-{count}", count, False, requests, scaled)


def decoded_rows_a_second(folder: Path, with_parses: bool) -> dict[str, float]:
    """Rows a second that a thread reads from a shard of random images, by the code that feeds a training."""
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 64, 64), dtype=np.uint8)
    steps = torch.arange(64).expand(ROWS, -1)
    z = PartSequence(torch.ones(ROWS, 64, dtype=torch.bool), steps, steps) if with_parses else None
    disk = fs.LocalFileSystem()
    shards = write_run(disk, str(folder), {"train": [Parsed(Rows(black().ids, images), z)]})
    parses = Parses.of_split(shards, "train", (disk, f"{folder}/parses") if with_parses else None)
    whole, rates = RowRange(parses.files[0].path, 0, ROWS), list[float]()
    pa.set_cpu_count(1)
    for _ in range(1000):
        started = time.perf_counter()
        assert len(parses._batch(whole)) == ROWS
        rates.append(ROWS / (time.perf_counter() - started))
    return {"median": float(np.median(rates)), "best": max(rates)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=146_600)
    parser.add_argument("--s3", action="store_true", help="on moto's S3 instead of a disk")
    parser.add_argument("--ray", action="store_true", help="with tasks of Ray on this machine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scaled", action="store_true", help="groups few shards as very many")
    parser.add_argument("--decode", action="store_true", help="instead, how fast one thread reads rows")
    given = parser.parse_args(arguments)
    if given.decode:
        with tempfile.TemporaryDirectory() as folder:
            ways = {"images": False, "images and parses": True}
            found = {way: decoded_rows_a_second(Path(folder, way), z) for way, z in ways.items()}
    elif given.s3:
        found = simulate_s3(given.shards, given.scaled)
    else:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "prepared").mkdir()
            found = simulate(folder, given.shards, given.ray, None, given.scaled)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "stages"}))


if __name__ == "__main__":
    from tests.helpers import many_shards  # the tasks of Ray find its functions by this name

    many_shards.main()
