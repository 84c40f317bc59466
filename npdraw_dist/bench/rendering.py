"""Section `drawing`: rendering and sampling, beside the dense reference.

Shapes: B batch, T steps, C channels, h x w canvas.
"""

from collections.abc import Callable

import torch

from npdraw_dist.bench import dense, machine
from npdraw_dist.bench.subjects import Subject
from npdraw_dist.bench.workload import Figures, Workload, seconds_of
from npdraw_dist.nn.npdraw import NPDraw

RENDERED, QUICK_RENDERED = 500, 64
SAMPLES = 64
REPEATS, QUICK_REPEATS = 5, 1


@torch.no_grad()
def run(work: Workload) -> Figures:
    """`render_*`: all T canvases of B parses. `samples_per_s`: images, from the prior to the decoder.

    `sample_speedup_vs_recompute`: images, where the reference at every step renders, convolves and
    computes again all before it. `sample_prior_speedup_vs_recompute`: z alone, with our stem; no more
    than (T + 1) / 2 could come of fewer operations there.
    """
    size, repeats = (QUICK_RENDERED, QUICK_REPEATS) if work.quick else (RENDERED, REPEATS)
    subject = Subject.of(work, size)
    model = subject.model.eval()
    z = subject.batch.z.to(model.device)
    seconds, dense_s = _compared(
        lambda: model.render(z, steps=True),
        lambda: dense.render_steps(model.bank_parts, z, model.grid),
        repeats,
    )
    return {
        "render_batch": size,
        "render_canvases_per_s": size * z.steps / seconds,
        "render_speedup_vs_dense": dense_s / seconds,
        **_sampling(model, subject.authors.eval(), repeats),
    }


def _sampling(model: NPDraw, authors: NPDraw, repeats: int) -> Figures:
    def generator() -> torch.Generator:
        return torch.Generator(model.device).manual_seed(0)

    images_s, dense_s = _compared(
        lambda: model.sample(SAMPLES, generator()),
        lambda: dense.sample(authors, SAMPLES, generator()),
        repeats,
    )
    prior_s, dense_prior_s = _compared(
        lambda: model.sample_prior(SAMPLES, generator()),
        lambda: dense.sample_prior(model, SAMPLES, generator()),
        repeats,
    )
    return {
        "samples_per_s": SAMPLES / images_s,
        "sample_speedup_vs_recompute": dense_s / images_s,
        "sample_prior_speedup_vs_recompute": dense_prior_s / prior_s,
    }


def _compared(ours: Callable[[], object], reference: Callable[[], object], repeats: int) -> list[float]:
    """The median seconds of both, in turns, after one call of each."""

    def timed(function: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            function()
            machine.synchronise()

        return run

    functions = [timed(ours), timed(reference)]
    seconds_of(functions, 1)
    return seconds_of(functions, repeats)
