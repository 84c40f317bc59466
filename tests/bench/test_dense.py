"""The dense reference is the same model: canvases, log-probabilities, samples, a step of the VAE."""

from typing import Any

import pytest
import torch

from npdraw_dist.bench import dense
from npdraw_dist.bench.dense import DensePrior, DenseVAEObjective, render_steps
from npdraw_dist.config.load import build
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.prior import Prior
from npdraw_dist.nn.steps import log_prob

BATCH, PARTS = 5, 6
KINDS = [("aligned", "joint"), ("raster", "factorised")]


def experiment(order: str, table: str) -> Experiment:
    values: dict[str, Any] = {
        "bank": {"size": PARTS},
        "prior": {"width": 16, "depth": 2, "attention_heads": 2, "table": table},
        "vae": {"encoder_width": 16, "decoder_width": 16, "decoder_depth": 1},
        "grid": {"patch": 7, "stride": 7},
        "parse": {"order": order, "steps": 16 if order == "aligned" else 9},
    }
    return build(values)


def prior(order: str, table: str) -> Prior:
    """With weights far from the start, so that every term shows."""
    torch.manual_seed(0)
    made = Prior(ModelSpec.of(experiment(order, table))).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    made.set_bank(torch.rand(PARTS, 1, 7, 7))
    return made


def sequence(spec: ModelSpec, n: int = BATCH) -> PartSequence:
    g = torch.Generator().manual_seed(1)
    shape = (n, spec.steps)
    where = torch.randint(spec.grid.places, shape, generator=g)
    if spec.aligned:
        where = torch.arange(spec.steps).repeat(n, 1)
    what = torch.randint(spec.parts, shape, generator=g)
    return PartSequence(torch.rand(shape, generator=g) < 0.6, where, what)


@pytest.mark.parametrize(("order", "table"), KINDS)
def test_canvases_log_probabilities_and_samples(order: str, table: str) -> None:
    made = prior(order, table)
    z, bank, grid = sequence(made.spec), torch.rand(PARTS, 1, 7, 7), made.spec.grid
    assert torch.equal(render_steps(bank, z, grid), paste_steps(gather_parts(bank, z, grid), z.where, grid))
    with torch.no_grad():
        torch.testing.assert_close(log_prob(DensePrior(made)(z), z), made.log_prob(z))
    model = NPDraw(ModelSpec.of(experiment(order, table))).eval()
    model.prior.load_state_dict(made.state_dict())
    model.set_bank(PartBank(bank))
    reference = DensePrior.of(model, False)
    ours = model.sample_prior(32, torch.Generator().manual_seed(3))
    again = dense.sample_prior(model, reference, 32, torch.Generator().manual_seed(3))
    for name in ("whether", "where", "what"):
        assert torch.equal(getattr(ours, name), getattr(again, name)), name
    assert len({tuple(row.tolist()) for row in ours.what}) > 8
    images = model.sample(32, torch.Generator().manual_seed(3))
    torch.testing.assert_close(images, dense.sample(model, reference, 32, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("order", "table"), KINDS)
def test_loss_and_gradients_of_a_vae_step(order: str, table: str) -> None:
    """Dropout is off."""
    e = experiment(order, table)
    losses, gradients = [], []
    for make in (VAEObjective, DenseVAEObjective):
        torch.manual_seed(0)
        model = NPDraw(ModelSpec.of(e))
        model.set_bank(PartBank(torch.rand(PARTS, 1, 7, 7)))
        objective = make(model, e.vae)
        images = torch.randint(256, (BATCH, 1, 28, 28), dtype=torch.uint8)
        batch = Batch.of(images, sequence(model.spec))
        loss, _ = objective(batch, 0.5, torch.Generator().manual_seed(2))
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.posterior.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    for ours, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, ours, rtol=1e-3, atol=1e-4)
