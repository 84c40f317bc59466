"""New parts in a trained model: the old ones keep their probabilities up to the mass of the new."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.growth import SHARE, grown
from npdraw_dist.nn.npdraw import NPDraw
from tests.helpers.tiny_models import shaken
from tests.helpers.tiny_presets import bank_of, batch_of, tiny_preset

ADDED = 3


def pair(preset: str = "digits", table: str = "joint") -> tuple[NPDraw, NPDraw, Any]:
    """A trained model, as it were, the same with more parts, and a batch."""
    experiment = tiny_preset(preset)
    prior = experiment.prior.model_copy(update={"table": table})
    experiment = experiment.model_copy(update={"prior": prior})
    spec = ModelSpec.of(experiment)
    torch.manual_seed(0)
    old = NPDraw(spec)
    old.set_bank(bank_of(experiment))
    shaken(old, 0.1)
    parts = torch.cat([old.bank_parts, torch.rand(ADDED, *old.bank_parts.shape[1:])])
    new = NPDraw(spec.model_copy(update={"parts": len(parts)}))
    new.load_state_dict(grown(new.spec, old.state_dict(), parts))
    assert torch.equal(new.bank.parts, PartBank(parts).parts)
    return old.eval(), new.eval(), batch_of(experiment, 6)


@pytest.mark.parametrize(
    ("preset", "table"),
    [("digits", "joint"), ("mnist_path", "factorised"), ("authors", "joint"), ("emoji", "factorised")],
)
@torch.no_grad()
def test_old_parts_keep_their_probabilities_up_to_the_mass_of_the_new(preset: str, table: str) -> None:
    old, new, batch = pair(preset, table)
    before, after = old.prior(batch.z), new.prior(batch.z)
    k = old.spec.parts
    torch.testing.assert_close(after.whether, before.whether, rtol=1e-4, atol=1e-4)
    if before.where is not None:
        torch.testing.assert_close(after.where, before.where, rtol=1e-4, atol=1e-4)
    chances = after.what.softmax(-1)
    mass = chances[..., k:].sum(-1, keepdim=True)
    torch.testing.assert_close(chances[..., :k], before.what.softmax(-1) * (1 - mass), rtol=1e-3, atol=1e-5)
    assert (mass > 0).all()
    assert (mass <= SHARE / (1 + SHARE) + 1e-6).all()
    lost = old.prior_log_prob(batch.z) - new.prior_log_prob(batch.z)
    assert (lost > -1e-3).all()
    assert (lost <= old.spec.steps * math.log1p(SHARE) + 1e-3).all()
    x = (batch.images.float() / 255).round()
    said = [model.posterior(x).what[..., :k] for model in (old, new)]
    torch.testing.assert_close(said[1], said[0], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_new_part_is_seen_where_it_fits() -> None:
    """As an untrained posterior sees it: by its squared error."""
    old, new, _ = pair()
    part = new.bank_parts[old.spec.parts + 1]
    x = torch.zeros(1, *old.spec.image_shape)
    x[0, :, : old.spec.patch, : old.spec.patch] = part
    assert int(new.posterior(x).what[0, 0].argmax()) == old.spec.parts + 1


def test_a_twin_has_its_share() -> None:
    """By hand: two new parts that resemble part 0, one that resembles part 1."""
    old, new, batch = pair()
    parts = torch.cat([old.bank_parts, old.bank_parts[[0, 0, 1]] * 0.99])
    new.load_state_dict(grown(new.spec, old.state_dict(), parts))
    with torch.no_grad():
        logits: Tensor = new.prior(batch.z).what
    k = old.spec.parts
    for twins, index in (([k, k + 1], 0), ([k + 2], 1)):
        together = logits[..., twins].logsumexp(-1)
        torch.testing.assert_close(together - logits[..., index], torch.full_like(together, SHARE).log())


def test_equal_parts_are_no_growth() -> None:
    old, _, _ = pair()
    found = grown(old.spec, old.state_dict(), old.bank_parts)
    assert all(torch.equal(found[name], value) for name, value in old.state_dict().items())
    with pytest.raises(ValueError, match="first parts"):
        grown(old.spec, old.state_dict(), old.bank_parts.flip(0))
