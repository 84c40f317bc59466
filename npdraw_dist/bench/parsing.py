"""Sections `parse` and `shards`: images/s of the parser; the cost of an image in a shard."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pyarrow.fs import LocalFileSystem

from npdraw_dist.bench.workload import Figures, Workload, median_seconds
from npdraw_dist.config.load import with_changes
from npdraw_dist.core.process import cpu_count
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.parses import Parses, ShardFile
from npdraw_dist.data.repeats import RANGES, RepeatFinder
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import DONE, ShardFolder, ShardWriter
from npdraw_dist.data.shards import open_source
from npdraw_dist.distributed.tasks import one_thread
from npdraw_dist.pipeline.parse import AT_ONCE, ParseEncoder
from npdraw_dist.pipeline.stage_job import make_feed

QUICK_IMAGES, FULL_IMAGES = 4_000, 20_000
REPEATS, SHARD_REPEATS = 7, 5
ROWS = 1_024  # of a shard
FEED_BATCH = 128  # of the stream that is measured


def run(work: Workload) -> Figures:
    """`parse_images_per_s`: on all cores, from uint8 images."""
    parser = work.parser()
    images = torch.from_numpy(work.canvases[: QUICK_IMAGES if work.quick else FULL_IMAGES])
    batches = images.split(AT_ONCE)
    errors = torch.cat([parser(batch).squared_error for batch in batches])
    # A thread for each core, and one of torch in each, as in the actors: threads of one operation meet at its
    # end, so on a busy machine they wait longer than they work.
    with one_thread(), ThreadPoolExecutor(cpu_count()) as pool:
        (seconds,) = median_seconds([lambda: list(map(parser, batches))], REPEATS)
        (together,) = median_seconds([lambda: list(pool.map(parser, batches))], REPEATS)
    return {
        "parse_images_per_s": len(images) / together,
        "parse_images_per_s_of_a_core": len(images) / seconds,
        "parse_canvas_mse": float(errors.double().mean()),
    }


def run_shards(work: Workload) -> Figures:
    """Microseconds of one core and bytes on disk, an image, in the stages that read and write files."""
    _, channels, height, _ = work.images.shape
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as name, one_thread():
        folder = Path(name)
        file = folder / "data" / "train" / "0.parquet"
        file.parent.mkdir(parents=True)
        rows = Rows([f"{n:08d}" for n in range(ROWS)], work.images[np.arange(ROWS) % len(work.images)])
        data = {"source": "parquet", "path": str(folder / "data"), "image_size": height, "channels": channels}
        shares = {"valid_fraction": 0.0, "test_fraction": 0.0, "fraction": 1.0}
        experiment = with_changes(work.experiment, {"data": data | shares})

        figures: Figures = {"read_us_per_image": work.read_s * 1e6}
        figures["prepare_us_per_image"] = _image_us(lambda: file.write_bytes(to_parquet(rows)))
        (shard,) = open_source(experiment.data, experiment.seed).shards("train")
        figures["load_us_per_image"] = _image_us(shard.read)
        written_to = ShardFolder(LocalFileSystem(), str(folder / "parses"), "bench")
        writer = ShardWriter(written_to, ParseEncoder(experiment, work.parser().bank.parts.numpy()))
        figures["parse_shard_us_per_image"] = _image_us(lambda: writer(shard))
        finder = RepeatFinder(LocalFileSystem(), f"{written_to.root}/{DONE}", (shard.name,))
        figures["ids_us_per_image"] = _image_us(lambda: finder((0, RANGES)))
        (parses,) = (folder / "parses" / "train").iterdir()
        stream = Parses(LocalFileSystem(), (ShardFile(str(parses), ROWS),))
        batch = {"batch_size": FEED_BATCH, "micro_batch": FEED_BATCH}
        steps = make_feed(stream, with_changes(experiment, {"train": batch})).steps(0)
        figures["stream_us_per_image"] = _image_us(lambda: list(islice(steps, ROWS // FEED_BATCH)))
        for what, where in (("prepare", "data"), ("parse", "parses")):
            size = sum(file.stat().st_size for file in (folder / where / "train").iterdir())
            figures[f"{what}_bytes_per_image"] = size / ROWS
    return figures


def _image_us(function: Callable[[], object]) -> float:
    """The first call, which loads what is loaded once, does not count."""
    return median_seconds([function], SHARD_REPEATS, warm_up=1)[0] / ROWS * 1e6
