"""The posterior: what each place draws, and the drawings of these choices in every order."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.posterior import Posterior
from tests.helpers.tiny_models import (
    all_drawings,
    assert_frequencies,
    random_drawings,
    shaken,
    tiny_model,
    tiny_spec,
)

SIZES: list[dict[str, Any]] = [
    {"image_shape": (1, 28, 28), "patch": 5, "stride": 5, "steps": 36, "parts": 7},
    {"image_shape": (1, 7, 8), "patch": 3, "stride": 2, "steps": 12, "parts": 4},
    {"image_shape": (3, 8, 8), "downscale": 2, "patch": 2, "stride": 2, "steps": 4, "parts": 5},
]
# Three places, of which at most two are drawn.
THREE: dict[str, Any] = {"image_shape": (1, 2, 6), "steps": 2}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_shapes(order: str, size: dict[str, Any]) -> None:
    size = dict(size) if order == "aligned" else size | {"steps": 3}
    spec = tiny_spec(order, **size)
    model = tiny_model(spec)
    q = model.infer(torch.rand(2, *spec.image_shape))
    assert q.whether.shape == (2, spec.grid.places)
    assert q.what.shape == (2, spec.grid.places, spec.parts)
    assert q.where is None
    for z in (model.sample_posterior(q, None), model.encode(torch.rand(2, *spec.image_shape))):
        assert z.whether.shape == (2, spec.steps)


@pytest.mark.parametrize("stride", [2, 1])
def test_an_image_does_not_see_its_batch(stride: int) -> None:
    spec = tiny_spec("raster", image_shape=(1, 4, 6), stride=stride, parts=3, steps=6)
    torch.manual_seed(0)
    posterior = Posterior(spec)
    shaken(posterior)
    x = torch.rand(5, 1, 4, 6)
    whole, alone = posterior(x), posterior(x[2:3])
    torch.testing.assert_close(whole.whether[2:3], alone.whether, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.what[2:3], alone.what, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole.what[2], whole.what[3])


@pytest.mark.parametrize(("order", "size"), [("aligned", {}), ("raster", {}), ("raster", THREE)])
def test_q_enumerates_to_one(order: str, size: dict[str, Any]) -> None:
    spec = tiny_spec(order, **size)
    model = tiny_model(spec)
    z = all_drawings(spec)
    q = model.infer(torch.rand(1, *spec.image_shape)).tile(len(z))
    drawn = torch.zeros(len(z), spec.grid.places)
    expected = torch.zeros(len(z))
    for row in range(len(z)):
        for step in range(spec.steps):
            if z.whether[row, step]:
                place = int(z.where[row, step])
                drawn[row, place] = 1
                expected[row] += Categorical(logits=q.what[row, place]).log_prob(z.what[row, step])
    expected += Bernoulli(logits=q.whether).log_prob(drawn).sum(1)
    # What remains if more than T places may not be drawn.
    expected -= expected.logsumexp(0)
    log_q = model.layout.log_prob(q, z)
    torch.testing.assert_close(log_q, expected)
    assert float(log_q.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("order", "size"), [("aligned", {}), ("raster", {}), ("raster", THREE)])
@torch.no_grad()
def test_draws_have_the_frequencies_of_q(order: str, size: dict[str, Any]) -> None:
    spec, n = tiny_spec(order, **size), 20_000
    model, every = tiny_model(spec), all_drawings(spec)
    q = model.infer(torch.rand(1, *spec.image_shape))
    z = model.sample_posterior(q.tile(n), torch.Generator().manual_seed(0)).canonical()
    every = every.canonical() if order == "raster" else every
    if order == "aligned":  # where of a step that draws nothing is its place
        z = PartSequence(z.whether, every.where[:1].expand(n, -1), z.what)
    assert_frequencies(model, q, z, every)


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_a_draw_is_in_the_order_of_its_places(order: str) -> None:
    steps = 12 if order == "aligned" else 7
    spec = tiny_spec(order, image_shape=(1, 6, 8), parts=5, steps=steps)
    model = tiny_model(spec)
    z = model.sample_posterior(model.infer(torch.rand(64, 1, 6, 8)), torch.Generator().manual_seed(0))
    kind = ORDERS[order]
    energy = torch.zeros(64, spec.grid.places)
    part_energy = model.bank_parts.square().sum((1, 2, 3))[z.what]
    chosen = torch.zeros(64, spec.grid.places)
    for step in range(spec.steps):
        place = z.where[:, step, None]
        chosen.scatter_add_(1, place, z.whether[:, step, None].float())
        energy.scatter_add_(1, place, part_energy[:, step, None] * z.whether[:, step, None])
    assert float(chosen.max()) == 1, "no place is drawn twice"
    whether, where = kind.arrange(chosen > 0, energy, spec.grid, spec.steps)
    assert torch.equal(whether, z.whether)
    assert torch.equal(where[whether], z.where[whether])


@pytest.mark.parametrize("order", ["aligned", "raster", "path"])
def test_tile_repeats_whole_after_whole(order: str) -> None:
    spec = tiny_spec(order)
    model, z = tiny_model(spec), random_drawings(spec, 3)
    q = model.infer(torch.rand(3, *spec.image_shape))
    tiled = model.layout.log_prob(q.tile(2), PartSequence.cat([z, z])).view(2, 3)
    torch.testing.assert_close(tiled, model.layout.log_prob(q, z).expand(2, 3))


def test_overlapping_places_start_with_half_of_the_steps() -> None:
    spec = tiny_spec("path", image_shape=(1, 12, 12), patch=4, stride=2, steps=6)
    torch.manual_seed(0)
    posterior = Posterior(spec)
    posterior.set_bank(torch.rand(spec.parts, 1, 4, 4))
    expected = torch.sigmoid(posterior(torch.rand(8, 1, 12, 12)).whether).sum(1)
    assert ((expected > 1.5) & (expected < 6)).all()


@pytest.mark.parametrize("downscale", [1, 2])
def test_q_starts_as_a_soft_parse(downscale: int) -> None:
    """Before training the most likely parts of a drawn image are those that drew it."""
    steps = (12 // downscale // 3) ** 2
    spec = tiny_spec(
        "aligned", image_shape=(1, 12, 12), downscale=downscale, patch=3, stride=3, steps=steps, parts=6
    )
    torch.manual_seed(0)
    posterior = Posterior(spec)
    bank = (torch.rand(6, 1, 3, 3) > 0.5).float()
    posterior.set_bank(bank)
    what = torch.randint(6, (50, spec.steps))
    canvas = spec.grid.fold_sum(bank[what])
    image = canvas.repeat_interleave(downscale, 2).repeat_interleave(downscale, 3)
    q = posterior(image)
    same = (bank[q.what.argmax(-1)] == bank[what]).flatten(2).all(-1)
    assert same.float().mean() > 0.97
    drawn = bank[what].flatten(2).sum(-1) > 0
    assert (q.whether[drawn] > 0).float().mean() > 0.97
