"""Section `parse`: images/s of the parser."""

from concurrent.futures import ThreadPoolExecutor

import torch

from npdraw_dist.bench.workload import Figures, Workload, median_seconds
from npdraw_dist.core.process import cpu_count
from npdraw_dist.distributed.tasks import one_thread
from npdraw_dist.pipeline.parse import AT_ONCE

QUICK_IMAGES, FULL_IMAGES = 4_000, 20_000
REPEATS = 7


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
