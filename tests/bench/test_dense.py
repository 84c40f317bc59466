"""The dense reference is the same model: canvases, log-probabilities, samples, a step of the VAE."""

import pytest
import torch

from npdraw_dist.bench import dense
from npdraw_dist.bench.dense import DensePrior, DenseVAEObjective, render_steps
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.paste import gather_parts, paste_steps
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.steps import log_prob
from tests.helpers.tiny_models import random_sequence, same, seeded, tiny_model, tiny_spec

BATCH = 5
KINDS = [("aligned", "joint"), ("raster", "factorised")]


def model_of(order: str, table: str) -> NPDraw:
    """A model with weights far from the start, so that every term matters."""
    steps = 16 if order == "aligned" else 9
    return tiny_model(tiny_spec(order, table=table, image_shape=(1, 8, 8), parts=6, steps=steps))


@pytest.mark.parametrize(("order", "table"), KINDS)
def test_canvases_log_probabilities_and_samples(order: str, table: str) -> None:
    model = model_of(order, table)
    z, bank, grid = random_sequence(model.spec, BATCH), model.bank_parts, model.spec.grid
    assert torch.equal(render_steps(bank, z, grid), paste_steps(gather_parts(bank, z, grid), z.where, grid))
    reference = DensePrior.of(model, False)
    with torch.no_grad():
        torch.testing.assert_close(log_prob(reference(z), z), model.prior.log_prob(z))
    ours = model.sample_prior(32, generator=seeded(3))
    assert same(ours, dense.sample_prior(model, reference, 32, seeded(3)))
    assert len({tuple(row.tolist()) for row in ours.what}) > 8
    images = model.sample(32, generator=seeded(3))
    torch.testing.assert_close(images, dense.sample(model, reference, 32, seeded(3)))


@pytest.mark.parametrize(("order", "table"), KINDS)
def test_loss_and_gradients_of_a_vae_step(order: str, table: str) -> None:
    images = torch.randint(256, (BATCH, 1, 8, 8), generator=seeded(1), dtype=torch.uint8)
    losses, gradients = [], []
    for make in (VAEObjective, DenseVAEObjective):
        model = model_of(order, table)
        objective = make(model, VAEConfig()).train()
        loss, _ = objective(Batch.of(images, random_sequence(model.spec, BATCH)), 0.5, seeded(2))
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.posterior.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    for ours, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, ours, rtol=1e-3, atol=1e-4)
