"""Training data of a stage: read once into memory up to `data.cache_mb`, streamed above."""

import math

import numpy as np

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import Batch
from npdraw_dist.data.parses import Parses, index_type
from npdraw_dist.pipeline.progress import console
from npdraw_dist.training.feed import MemoryFeed, StreamFeed

SHUFFLE_ROWS = 4096  # least rows of a stream's shuffle window
PIECE_ROWS = 1024  # least rows of it for each micro-batch


def row_bytes(experiment: Experiment) -> int:
    """Bytes of a row of `Batch`."""
    steps = experiment.steps if "bank" in experiment.stage_names else 0
    index = np.dtype(index_type(max(experiment.bank.size, experiment.canvas_grid.places) - 1)).itemsize
    return math.prod(experiment.data.shape) + steps * (1 + 2 * index)


def window_rows(experiment: Experiment) -> int:
    """Rows of a stream's shuffle window, all micro-batches together; an epoch has fewer if it is smaller."""
    return max(SHUFFLE_ROWS, int(experiment.train.shuffle_mb * 2**20 / row_bytes(experiment)))


def is_streamed(experiment: Experiment, rows: int) -> bool:
    """Whether `rows` training images are streamed, not read into memory."""
    # A stream deals each rank a share of an epoch; below a batch there is nothing to share out.
    return (
        rows * row_bytes(experiment) > experiment.data.cache_mb * 2**20
        and rows >= experiment.train.batch_size
    )


def say_how_read(experiment: Experiment, stage: str, rows: int, streamed: bool) -> None:
    size = rows * row_bytes(experiment) / 2**20
    console.print(
        f"{stage}: {rows:,} training images of {size:,.1f} MB are "
        f"{'streamed' if streamed else 'read into memory'} (data.cache_mb {experiment.data.cache_mb:g})"
    )


def memory_feed(data: Batch, experiment: Experiment, rank: int = 0, world_size: int = 1) -> MemoryFeed:
    """`data` for one rank."""
    settings = experiment.train
    sizes = (settings.batch_size, settings.micro_batch)
    return MemoryFeed(data, *sizes, experiment.seed, rank, world_size)


def stream_feed(parses: Parses, experiment: Experiment, rank: int = 0, world_size: int = 1) -> StreamFeed:
    """`parses` for one rank, read by Ray Data as they are needed."""
    settings = experiment.train
    micro_batches = settings.batch_size // settings.micro_batch
    piece = max(2 * settings.micro_batch, PIECE_ROWS, window_rows(experiment) // micro_batches)
    sizes = (settings.batch_size, settings.micro_batch, piece)

    return StreamFeed(parses.groups.rows, parses.stream_groups, *sizes, experiment.seed, rank, world_size)
