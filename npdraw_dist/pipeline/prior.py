"""Stage `prior`: maximum likelihood of the Transformer on the parses, by Ray Train."""

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.train import UserCallback

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.nn.prior import Prior
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.store import Store, finished, required
from npdraw_dist.pipeline.train_stage import as_batch, load_head, run_training
from npdraw_dist.training import checkpoint

STAGE = "prior"
TEST_ROWS = 2048  # test parses of test_nll, at most (or eval.images, if that is more)


def run(experiment: Experiment, store: Store, callbacks: Sequence[UserCallback] = ()) -> dict[str, Any]:
    """Trains the prior and writes prior/; returns its manifest (with test_nll in nats per image)."""
    made_from = of_stage(experiment, STAGE)
    required(store, "parse", of_stage(experiment, "parse"), STAGE)
    if (manifest := finished(store, STAGE, made_from)) is not None:
        return manifest
    rendered = _parts(experiment, store) if experiment.prior.stem == "conv" else None
    summary, saved, tensors = run_training(
        experiment, store, STAGE, make_objective, {"bank": rendered}, callbacks
    )
    prior = Prior(ModelSpec.of(experiment)).eval()
    prior.load_state_dict(checkpoint.weights(tensors, "prior."))
    test = load_head(store, "test", max(experiment.eval.images, TEST_ROWS))
    manifest = {
        "fingerprint": made_from,
        "checkpoint": saved,
        **summary,
        "test_nll": test_nll(prior, as_batch(test)),
        "parameters": sum(p.numel() for p in prior.parameters()),
    }
    store.write_json(manifest, STAGE, "manifest.json")
    return manifest


def _parts(experiment: Experiment, store: Store) -> ray.ObjectRef:
    """The bank (K, C, P, P) in Ray's object store, for a stem that renders it."""
    required(store, "bank", of_stage(experiment, "bank"), STAGE)
    with store.reading("bank", "bank.safetensors") as path:
        return ray.put(PartBank.load(path).parts.numpy())


def make_objective(config: dict[str, Any]) -> PriorObjective:
    experiment = Experiment.model_validate(config["experiment"])
    settings = experiment.prior
    prior = Prior(ModelSpec.of(experiment))
    if config["bank"] is not None:
        prior.set_bank(torch.tensor(ray.get(config["bank"])))
    return PriorObjective(prior, settings.learning_rate, settings.weight_decay)


@torch.no_grad()
def test_nll(prior: Prior, data: Batch) -> float:
    """Mean -log p(z) of the parses in nats per image."""
    values = [-prior.log_prob(data.z[start : start + 256]) for start in range(0, len(data), 256)]
    return float(torch.cat(values).mean())
