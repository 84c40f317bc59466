"""Dropout keeps the mean, and every kind of model has dropout and weight decay."""

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.noise import Dropout
from npdraw_dist.core.objective import Objective
from npdraw_dist.nn.objective import PRIOR_DECAY
from tests.helpers.tiny_baselines import KINDS
from tests.helpers.tiny_models import seeded
from tests.helpers.tiny_presets import batch_of, objective_of, tiny_preset

TABLES = ("codebook", "pseudo_inputs", "drawn", "position", "first_", "background", "place", "part", "blank")


@pytest.mark.parametrize(("p", "shape"), [(0.1, (7, 11, 1301)), (0.5, (100_001,)), (0.9, (100_001,))])
def test_a_value_is_zeroed_with_probability_p(p: float, shape: tuple[int, ...]) -> None:
    """To 1/256, within four standard deviations; the others are scaled so that the mean stays."""
    p, masks = round(p * 256) / 256, []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(Dropout(p)(torch.ones(shape)))
    out, again, other = masks
    assert torch.equal(out, again)
    assert not torch.equal(out, other)
    zeroed = float((out == 0).double().mean())
    assert abs(zeroed - p) < 4 * (p * (1 - p) / out.numel()) ** 0.5
    torch.testing.assert_close(out[out != 0], torch.full(((out != 0).sum(),), 1 / (1 - p)), rtol=1e-4, atol=0)


def test_the_gradient_passes_where_the_value_does() -> None:
    torch.manual_seed(0)
    x = torch.rand(1000, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / x.detach())
    assert Dropout(0.4).eval()(x) is x
    assert Dropout(0.0)(x) is x


def with_vae(kind: str, **settings: float) -> Experiment:
    found = tiny_preset("mnist", kind)
    prior = found.prior.model_copy(update={"dropout": 0.0})
    return found.model_copy(update={"vae": found.vae.model_copy(update=settings), "prior": prior})


def loss(objective: Objective, experiment: Experiment, seed: int) -> Tensor:
    """seed: for torch's global generator, which dropout uses; all other noise is the same."""
    torch.manual_seed(seed)
    found, _ = objective(batch_of(experiment), 1.0, seeded())
    return found.detach()


@pytest.mark.parametrize("kind", ["npdraw", *KINDS])
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


@pytest.mark.parametrize("kind", ["npdraw", *KINDS])
def test_weight_decay_reaches_the_matrices_of_every_kind(kind: str) -> None:
    objective = objective_of(with_vae(kind, weight_decay=0.125), "vae")
    decay = {id(p): group["weight_decay"] for group in objective.parameter_groups() for p in group["params"]}
    named = dict(objective.named_parameters())
    assert set(decay) == {id(parameter) for parameter in named.values()}
    for name, parameter in named.items():
        matrix = parameter.ndim >= 2 and not any(word in name for word in TABLES)
        weight = PRIOR_DECAY if ".prior." in name else 0.125
        assert decay[id(parameter)] == (weight if matrix else 0.0), name
    assert 0.125 in decay.values()
