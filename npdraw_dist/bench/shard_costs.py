"""Section `shards`: the cost of an image in the stages that read and write files: one process, one shard.

The capacity plan is made from these. Driver: what only the process of the command does.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from npdraw_dist.bank.patches import Reservoir, draw, extract
from npdraw_dist.bench.parsing import make_parser
from npdraw_dist.bench.repeated_images import ROWS, experiment_on, write_repeated
from npdraw_dist.bench.timing import median_seconds
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.data.repeats import RANGES, RepeatFinder
from npdraw_dist.data.shard_writer import DONE, ShardFolder, ShardWriter
from npdraw_dist.data.sources import open_source
from npdraw_dist.pipeline.parse import ParseEncoder

REPEATS = 5


def run(work: Workload) -> Figures:
    """Microseconds of one core, or of the driver, and bytes on disk, an image."""
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as name:
        folder = Path(name)
        written = _seconds(lambda: write_repeated(work, ROWS, folder))
        prepared = sum(file.stat().st_size for file in (folder / "data" / "train").iterdir())
        experiment = experiment_on(work, folder, {})
        (shard,) = open_source(experiment.data, experiment.seed).shards("train")
        written_to = ShardFolder(LocalFileSystem(), str(folder / "parses"), "bench")
        loaded = _seconds(shard.read)
        writer = ShardWriter(written_to, ParseEncoder(experiment, make_parser(work).bank.parts.numpy()))
        parsed = _seconds(lambda: writer(shard))
        finder = RepeatFinder(LocalFileSystem(), f"{written_to.root}/{DONE}", (shard.name,))
        checked = _seconds(lambda: finder((0, RANGES)))
        parses = sum(file.stat().st_size for file in (folder / "parses" / "train").iterdir())
    canvases = work.canvases[:ROWS]
    patches = extract(canvases, work.experiment.canvas_grid, work.experiment.bank.min_energy)
    reservoir, drawn = Reservoir(len(patches) // 2), draw(patches, 0, work.experiment.seed)
    sampled = _seconds(lambda: reservoir.add(drawn))
    return {
        "read_us_per_image": work.reading.seconds * 1e6,
        "read_once_us_per_image": work.reading.once_s * 1e6,
        "shards_of_a_file": work.reading.shards,
        "load_us_per_image": loaded / ROWS * 1e6,
        "prepare_us_per_image": written / ROWS * 1e6,
        "prepare_bytes_per_image": prepared / ROWS,
        "parse_shard_us_per_image": parsed / ROWS * 1e6,
        "parse_bytes_per_image": parses / ROWS,
        "ids_us_per_image": checked / ROWS * 1e6,
        "bank_patches_per_image": len(patches) / len(canvases),
        "bank_driver_us_per_image": sampled / len(canvases) * 1e6,
    }


def _seconds(function: Callable[[], object]) -> float:
    """The first call, which loads what is loaded once, does not count."""
    return median_seconds([function], REPEATS, warm_up=1)[0]
