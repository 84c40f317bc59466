"""Section `drawing`: rendering and sampling, beside the dense reference.

Shapes: B batch, T steps, C channels, h x w canvas.
"""

import torch

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.stages.bench.dense import DensePrior, render_steps
from npdraw_dist.stages.bench.machine import synchronise
from npdraw_dist.stages.bench.subjects import Subject
from npdraw_dist.stages.bench.workload import Figures, Workload, seconds_of

RENDERED, QUICK_RENDERED = 500, 64
SAMPLES = 64
REPEATS, QUICK_REPEATS = 7, 3


@torch.no_grad()
def run(work: Workload) -> Figures:
    """`render_*`: all T canvases of B parses. `samples_per_s`: z, canvas and image.

    `sample_speedup_vs_recompute` is of z alone, drawn with a KV cache and drawn by computing every step
    from all before it.
    """
    size = QUICK_RENDERED if work.quick else RENDERED
    subject = Subject.of(work, size)
    model = subject.model.eval()
    z, repeats = subject.batch.z.to(model.device), QUICK_REPEATS if work.quick else REPEATS

    def ours() -> torch.Tensor:
        canvases = model.render(z, steps=True)
        synchronise()
        return canvases

    def dense() -> torch.Tensor:
        canvases = render_steps(model.bank_parts, z, model.grid)
        synchronise()
        return canvases

    assert torch.equal(ours(), dense()), "both render the same"
    rendered, rendered_dense = seconds_of([ours, dense], repeats)
    return {
        "render_batch": size,
        "render_canvases_per_s": size * z.steps / rendered,
        "render_speedup_vs_dense": rendered_dense / rendered,
        **(_sampling(subject, repeats)),
    }


def _sampling(subject: Subject, repeats: int) -> Figures:
    model = subject.model
    reference = DensePrior(model.prior)

    def cached() -> PartSequence:
        return model.sample_prior(SAMPLES, torch.Generator(model.device).manual_seed(0))

    def recomputed() -> PartSequence:
        return reference.sample(SAMPLES, torch.Generator(model.device).manual_seed(0))

    def whole() -> torch.Tensor:
        return model.sample(SAMPLES, torch.Generator(model.device).manual_seed(0)).cpu()

    def step_by_step() -> None:
        cached()
        synchronise()

    def again_and_again() -> None:
        recomputed()
        synchronise()

    whole()
    seconds, dense_s, whole_s = seconds_of([step_by_step, again_and_again, whole], repeats)
    return {
        "samples_per_s": SAMPLES / whole_s,
        "sample_prior_s": seconds,
        "sample_prior_recompute_s": dense_s,
        "sample_speedup_vs_recompute": dense_s / seconds,
    }
