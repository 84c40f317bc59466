"""Dropout and weight decay are open to every kind of model alike."""

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.objective import Objective
from npdraw_dist.nn.objective import PRIOR_DECAY
from tests.helpers.tiny_presets import batch_of, objective_of, tiny_preset

TABLES = ("codebook", "pseudo_inputs", "drawn", "position", "first_", "background", "place", "part", "blank")


def with_vae(kind: str, **settings: float) -> Experiment:
    found = tiny_preset("mnist", kind)
    prior = found.prior.model_copy(update={"dropout": 0.0})
    return found.model_copy(update={"vae": found.vae.model_copy(update=settings), "prior": prior})


def loss(objective: Objective, experiment: Experiment, seed: int) -> Tensor:
    """seed: of torch's global generator, from which dropout draws; all other noise is the same."""
    torch.manual_seed(seed)
    found, _ = objective(batch_of(experiment), 1.0, torch.Generator().manual_seed(0))
    return found.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_reaches_every_kind(kind: str) -> None:
    for dropout in (0.0, 0.5):
        experiment = with_vae(kind, dropout=dropout)
        objective = objective_of(experiment, "vae")
        with torch.no_grad():
            for parameter in objective.parameters():  # so that no block is the identity
                parameter.add_(0.05 * torch.randn_like(parameter))
        same = torch.equal(loss(objective, experiment, 0), loss(objective, experiment, 1))
        assert same == (dropout == 0)
        objective.eval()
        assert torch.equal(loss(objective, experiment, 0), loss(objective, experiment, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_reaches_the_matrices_of_every_kind(kind: str) -> None:
    experiment = with_vae(kind, weight_decay=0.125)
    objective = objective_of(experiment, "vae")
    decay = {id(p): group["weight_decay"] for group in objective.parameter_groups() for p in group["params"]}
    named = dict(objective.named_parameters())
    assert set(decay) == {id(parameter) for parameter in named.values()}
    for name, parameter in named.items():
        table = any(word in name for word in TABLES)
        expected = 0.0 if parameter.ndim < 2 or table else 0.125
        if ".prior." in name and expected:
            expected = PRIOR_DECAY
        assert decay[id(parameter)] == expected, name
    assert 0.125 in decay.values()
