"""Section `drawing`: rendering and sampling, compared with the dense reference.

Shapes: B batch, T steps.
"""

from collections.abc import Callable
from functools import partial

import torch

from npdraw_dist.bench import dense
from npdraw_dist.bench.trainer import Subject
from npdraw_dist.bench.workload import Figures, Workload, median_seconds
from npdraw_dist.nn.npdraw import NPDraw

RENDERED, QUICK_RENDERED = 500, 64
SAMPLES = 64
REPEATS, QUICK_REPEATS = 5, 1


@torch.no_grad()
def run(work: Workload) -> Figures:
    """`render_*`: all T canvases of B parses. `samples_per_s`: images, from the prior to the decoder.

    `sample_speedup_vs_recompute`: images; the reference renders, convolves and computes the whole prefix
    again at every step. `sample_prior_speedup_vs_recompute`: z alone, with our stem; fewer operations can
    explain a factor of at most (T + 1) / 2 there.
    """
    size, repeats = (QUICK_RENDERED, QUICK_REPEATS) if work.quick else (RENDERED, REPEATS)
    subject = Subject.of(work, size)
    model = subject.model().eval()
    convolved = dense.dense_prior(model, convolved=True).eval()
    z = subject.batch.z.to(model.device)

    def dense_sample(model: NPDraw, n: int, generator: torch.Generator) -> torch.Tensor:
        return dense.sample(model, n, generator, convolved)

    def compared(ours: Callable[[], object], reference: Callable[[], object]) -> list[float]:
        return median_seconds([ours, reference], repeats, warm_up=1)

    def seeded(sample: Callable[..., object], *arguments: NPDraw | int) -> Callable[[], object]:
        return lambda: sample(*arguments, torch.Generator(model.device).manual_seed(0))

    render_s, dense_s = compared(
        partial(model.render, z, steps=True), partial(dense.render_steps, model.bank_parts, z, model.grid)
    )
    images_s, dense_images_s = compared(seeded(model.sample, SAMPLES), seeded(dense_sample, model, SAMPLES))
    prior_s, dense_prior_s = compared(
        seeded(model.sample_prior, SAMPLES), seeded(dense.sample_prior, model, SAMPLES)
    )
    return {
        "render_batch": size,
        "render_canvases_per_s": size * z.steps / render_s,
        "render_speedup_vs_dense": dense_s / render_s,
        "samples_per_s": SAMPLES / images_s,
        "sample_speedup_vs_recompute": dense_images_s / images_s,
        "sample_prior_speedup_vs_recompute": dense_prior_s / prior_s,
    }
