"""Measures the training time per image in a few steps; computes how many images fit into a given time."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.system.process import local_device
from npdraw_dist.training.context import Context
from npdraw_dist.training.device import flushed_denormals, timed
from npdraw_dist.training.loop import Run

PROBE_S = 2.0  # seconds for which steps of each kind are measured
# OTHER_SHARE: time share of bank, parses, validations, samples. PRIOR_SHARE: the prior's share of the rest.
PRIOR_SHARE, OTHER_SHARE = 0.12, 0.25
VALIDATIONS = 8
LEAST_STEPS = 20
MANY = 1 << 30  # a budget (images) of which one step is a negligible share


@dataclass(frozen=True)
class Cost:
    """Seconds of training per image.

    prior: cost in the stage `prior`; 0 for a kind of model without this stage. relaxed, hard: costs in the
    stage `vae` with relaxed and with hard draws of z; equal for a baseline.
    """

    prior: float
    relaxed: float
    hard: float

    def vae(self, relaxed_share: float) -> float:
        """Seconds per image of the stage `vae`. relaxed_share: the share of images with relaxed draws."""
        return relaxed_share * self.relaxed + (1 - relaxed_share) * self.hard


def cost(experiment: Experiment, cores: bool = False) -> Cost:
    """Measures the cost in this process, by a few training steps of a new model on random images.

    cores: measures CPU seconds of this process, which other load hardly changes, instead of elapsed seconds.
    """
    torch.manual_seed(experiment.seed)
    model, size, vae = make_model(spec_of(experiment)), experiment.train.batch_size, experiment.vae
    images = torch.randint(256, (size, *model.spec.image_shape), dtype=torch.uint8)
    if not isinstance(model, NPDraw):
        nothing = torch.zeros(size, 1, dtype=torch.int64)
        batch = Batch(images, nothing.bool(), nothing, nothing)
        seconds = _seconds(model.objective(vae), batch, experiment, cores)
        return Cost(0.0, seconds, seconds)
    model.set_bank(PartBank(torch.rand_like(model.bank_parts)))
    tokens, known = model.spec.prior.condition_tokens, len(model.spec.prior.vocabulary)
    conditions = torch.randint(known + 1, (size, tokens)) if tokens else None
    batch = Batch.of(images, model.sample_prior(size), conditions)
    learned = model.prior_objective(model.prior, experiment.prior.learning_rate)
    prior = _seconds(learned, batch, experiment, cores)
    steps = (_seconds(model.objective(vae), batch, experiment, cores, hard) for hard in (False, True))
    return Cost(prior, *steps)


def budgets(experiment: Experiment, minutes: float) -> dict[str, dict[str, Any]]:
    """The settings with which a run in this process takes about `minutes`.

    The budget of the VAE has the same shares of relaxed and of plain images as in `experiment`.
    """
    vae, an_image, size = experiment.vae, cost(experiment), experiment.train.batch_size

    def images_in(seconds: float, each: float) -> int:
        return size * max(round(seconds / each / size), LEAST_STEPS)

    left = minutes * 60 * (1 - OTHER_SHARE)
    images = images_in(left * (1 - PRIOR_SHARE), an_image.vae(vae.relaxed_share))
    given = {"relaxed_images": vae.relaxed_images, "plain_images": vae.plain_images}
    scaled = {name: round(images / vae.images * count) for name, count in given.items() if count is not None}
    return {
        "prior": {"images": images_in(left * PRIOR_SHARE, an_image.prior)},
        "vae": {"images": images, **scaled},
        "train": {"eval_every_images": math.ceil(images / VALIDATIONS)},
    }


def timed_step(run: Run, batch: Batch, hard: bool = False) -> float:
    """Seconds of a training step. hard: measures a step of the VAE with hard draws of z."""
    # In a budget of one batch and one image, the second step comes after the steps with relaxed draws.
    first, budget = (1, 1 + run.config.batch_size) if hard else (0, MANY)
    with flushed_denormals():
        return timed(lambda: run.update(first, (0, batch), budget))[1]


def _seconds(
    objective: Objective, batch: Batch, experiment: Experiment, cores: bool, hard: bool = False
) -> float:
    """The least seconds per image over several calls of `timed_step`, after a first call as warm-up."""
    settings, context = experiment.train, Context(local_device(experiment.scale.use_gpu))
    run = Run(objective, settings, experiment.seed, context)
    batch = batch.to(context.device)
    timed_step(run, batch, hard)
    taken: list[float] = []
    while sum(taken) < PROBE_S or len(taken) < 2:
        started = time.process_time()
        seconds = timed_step(run, batch, hard)
        taken.append(time.process_time() - started if cores else seconds)
    return min(taken) / len(batch)
