"""Sections `parse` and `shards`: the parser beside its matrix products; the cost of an image in a shard."""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import LocalFileSystem
from torch.utils._python_dispatch import TorchDispatchMode

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.bench.workload import ROWS, Figures, Workload, experiment_on, median_seconds, write_repeated
from npdraw_dist.data.repeats import RANGES, RepeatFinder
from npdraw_dist.data.shard_writer import DONE, ShardFolder, ShardWriter
from npdraw_dist.data.shards import open_source
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.parse import AT_ONCE, ParseEncoder

BANK_IMAGES = 2_000
QUICK_IMAGES, FULL_IMAGES = 4_000, 20_000
REPEATS, SHARD_REPEATS = 7, 5


def run(work: Workload) -> Figures:
    """`parse_images_per_s`: on all cores, from uint8 images. `parse_time_vs_matmul`: on one core.

    The products are those of all parts with all places; a parser on a CPU leaves out dim places.
    """
    parser = make_parser(work)
    empty = parser.chooser.empty
    images = torch.from_numpy(work.canvases[: QUICK_IMAGES if work.quick else FULL_IMAGES])
    batches = images.split(AT_ONCE)
    skips, empty.skips = empty.skips, False
    with MatrixProducts() as products:
        errors = torch.cat([parser(batch).squared_error for batch in batches])
    empty.skips = skips
    with _one_thread_each() as pool:
        seconds, alone = median_seconds([lambda: list(map(parser, batches)), products.replay()], REPEATS)
        (together,) = median_seconds([lambda: list(pool.map(parser, batches))], REPEATS)
    return {
        "parse_images_per_s": len(images) / together,
        "parse_images_per_s_of_a_core": len(images) / seconds,
        "parse_time_vs_matmul": seconds / alone,
        "parse_matmul_s": alone,
        "parse_canvas_mse": float(errors.double().mean()),
    }


def run_shards(work: Workload) -> Figures:
    """Microseconds of one core and bytes on disk, an image, in the stages that read and write files."""
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as name:
        folder = Path(name)
        written = _image_us(lambda: write_repeated(work, ROWS, folder))
        experiment = experiment_on(work, folder, {})
        (shard,) = open_source(experiment.data, experiment.seed).shards("train")
        loaded = _image_us(shard.read)
        written_to = ShardFolder(LocalFileSystem(), str(folder / "parses"), "bench")
        writer = ShardWriter(written_to, ParseEncoder(experiment, make_parser(work).bank.parts.numpy()))
        parsed = _image_us(lambda: writer(shard))
        finder = RepeatFinder(LocalFileSystem(), f"{written_to.root}/{DONE}", (shard.name,))
        checked = _image_us(lambda: finder((0, RANGES)))
        prepared_bytes, parse_bytes = (
            sum(file.stat().st_size for file in (folder / name / "train").iterdir()) / ROWS
            for name in ("data", "parses")
        )
    return {
        "read_us_per_image": work.read_s * 1e6,
        "load_us_per_image": loaded,
        "prepare_us_per_image": written,
        "prepare_bytes_per_image": prepared_bytes,
        "parse_shard_us_per_image": parsed,
        "parse_bytes_per_image": parse_bytes,
        "ids_us_per_image": checked,
    }


def _image_us(function: Callable[[], object]) -> float:
    """The first call, which loads what is loaded once, does not count."""
    return median_seconds([function], SHARD_REPEATS, warm_up=1)[0] / ROWS * 1e6


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as cores; in each, torch uses one thread, as in the actors.

    Threads of one torch operation meet at its end: on a busy machine they wait longer than they work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def make_parser(work: Workload) -> Parser:
    """The experiment's parser, with a bank of the first images."""
    e = work.experiment
    patches = extract(work.canvases[:BANK_IMAGES], e.canvas_grid, e.bank.min_energy)
    settings = e.bank.model_copy(update={"shards": 1})
    bank, _ = build_bank(patches, e.data.shape[0], settings, e.seed)
    return Parser.of(e, bank)


class MatrixProducts(TorchDispatchMode):
    """Records the shapes of all matrix products in its block."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.mm:
            self.shapes.append((args[0].shape, args[1].shape))
        return func(*args, **(kwargs or {}))

    def replay(self) -> Callable[[], None]:
        """A function that only computes these products again, with one set of buffers for each shape."""
        assert self.shapes, "a parser multiplies matrices"
        buffers = {
            pair: (torch.rand(pair[0]), torch.rand(pair[1]), torch.empty(pair[0][0], pair[1][1]))
            for pair in set(self.shapes)
        }

        def run() -> None:
            for pair in self.shapes:
                a, b, out = buffers[pair]
                torch.mm(a, b, out=out)

        return run
