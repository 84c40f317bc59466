"""Stage `prior`: trains the Transformer on the parses by maximum likelihood."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import Batch
from npdraw_dist.nn.hub import class_of
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, conditions_of
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.stage import Stage, Watch
from npdraw_dist.pipeline.stage_job import Start
from npdraw_dist.pipeline.store import Store, finished, required
from npdraw_dist.pipeline.train_stage import fall_note, run_stage
from npdraw_dist.pipeline.trained_models import source_model
from npdraw_dist.training import checkpoint

NAME, PREFIX = "prior", "prior."
SCORED = 2048  # least number of parses for the final NLL, if the split has as many


def run(experiment: Experiment, store: Store, watch: Watch | None = None) -> dict[str, Any]:
    """Trains the prior and writes prior/; returns its manifest (`valid_nll`: nats per image, or None)."""
    if (manifest := done(experiment, store)) is not None:
        return manifest
    experiment = store.with_vocabulary(experiment)
    start: Start = {}
    if experiment.init.model is not None:
        start = source_model(experiment).state_dict()
    elif experiment.by_authors or experiment.prior.table != "joint":  # the prior reads the parts' pixels
        start = {"bank_parts": load_bank(experiment, store).parts}
    manifest, _, record = run_stage(experiment, store, NAME, make_objective, start, watch)
    parameters = sum(p.numel() for p in make_prior(experiment).parameters())
    manifest |= {"valid_nll": record.get("valid/nll"), "parameters": parameters}
    store.write_manifest(manifest, NAME)
    return manifest


def done(experiment: Experiment, store: Store) -> dict[str, Any] | None:
    return finished(store, experiment, NAME)


def describe(manifest: Mapping[str, Any]) -> str:
    """Formats the stage's numbers for the table at the end of a run."""
    found = manifest.get("valid_nll")
    nll = None if found is None else f"validation NLL {found:.2f} nats"
    return "; ".join(filter(None, (nll, fall_note(manifest))))


def make_objective(experiment: Experiment, start: Start) -> PriorObjective:
    """Makes the prior and its loss. start: a model's tensors, `bank_parts` if the prior reads them, or {}."""
    prior = make_prior(experiment)
    if "bank_parts" in start:
        prior.set_bank(start["bank_parts"])
    if own := {name.removeprefix(PREFIX): start[name] for name in start if name.startswith(PREFIX)}:
        prior.load_state_dict(own)
    return class_of(prior.spec, NPDraw).prior_objective(prior, experiment.prior.learning_rate)


def make_prior(experiment: Experiment) -> StepPrior:
    """Makes an untrained prior for the run's kind of model."""
    spec = ModelSpec.of(experiment)
    return class_of(spec, NPDraw).make_prior(spec)


def trained_weights(experiment: Experiment, store: Store) -> dict[str, Tensor]:
    """The state dict of the prior that the finished stage trained."""
    manifest = required(store, experiment, NAME)
    with store.reading(NAME, manifest["checkpoint"]) as folder:
        return checkpoint.weights(checkpoint.read(folder)[0], PREFIX)


def scored(experiment: Experiment, store: Store) -> tuple[StepPrior, Batch]:
    """The trained prior, and a sample of the parses of `eval.split`, which are the inputs of `mean_nll`."""
    prior = make_prior(experiment).eval()
    prior.load_state_dict(trained_weights(experiment, store))
    rows = max(experiment.eval.images, SCORED)
    return prior, store.parses(experiment.eval.split, experiment).sample(rows, experiment.seed)


@torch.no_grad()
def mean_nll(prior: StepPrior, data: Batch, device: torch.device) -> float:
    """The mean of -log p(z) over the parses, in nats, given their conditions if the prior takes them."""
    prior = prior.to(device)
    parts = [data[start : start + 256].to(device) for start in range(0, len(data), 256)]
    return float(
        torch.cat([-prior.log_prob(part.z, conditions_of(prior.spec, part)) for part in parts]).mean()
    )


STAGE = Stage(NAME, ("data", "parse"), done, run, describe)
