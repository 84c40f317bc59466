"""A model on white gives for 1 - x, with the negative of each part, what a model on black gives for x.

Pixels are multiples of 1/256, of which 1 - x is exact.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from tests.helpers.tiny_models import GREY, same, seeded, tiny_model, tiny_spec

OVERLAPPING: dict[str, Any] = GREY | {"stride": 2, "steps": 12}
FEW = OVERLAPPING | {"steps": 5}
HALF: dict[str, Any] = OVERLAPPING | {"patch": 4, "stride": 2, "steps": 9, "parts": 5}
COLOUR: dict[str, Any] = {
    **{"image_shape": (3, 10, 14), "downscale": 2, "patch": 2, "stride": 2, "parts": 4, "steps": 12},
    **{"likelihood": "logistic", "binarize": "none"},
}


def dyadic(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(257, shape, generator=seeded(seed)) / 256


def pair(spec: ModelSpec) -> tuple[NPDraw, NPDraw]:
    """A model on black, and a model on white with the same weights and the negative bank.

    The posterior's fit is set by `set_bank`.
    """
    black = tiny_model(spec)
    white = type(black)(spec.model_copy(update={"background": "white"})).eval()
    white.load_state_dict(black.state_dict())
    parts = dyadic(*black.bank_parts.shape, seed=2)
    black.set_bank(PartBank(parts))
    white.set_bank(PartBank(1 - parts))
    return black, white


@pytest.mark.parametrize(
    ("order", "network", "size"),
    [
        *((order, "ours", OVERLAPPING if order == "aligned" else FEW) for order in ORDERS),
        *(("aligned", "ours", size) for size in (GREY, HALF, COLOUR)),
        *(("aligned", "authors", size) for size in (GREY, COLOUR)),
    ],
)
@torch.no_grad()
def test_q_and_p_are_those_of_the_negative(order: str, network: str, size: dict[str, Any]) -> None:
    """Teacher forcing and the cached sampler each have canvases of their own."""
    black, white = pair(tiny_spec(order, "independent", network, **size))
    x = dyadic(6, *black.spec.image_shape)
    q, other = black.infer(x), white.infer(1 - x)
    assert torch.equal(q.whether, other.whether)
    assert torch.equal(q.what, other.what)
    assert not torch.equal(white.infer(x).what, other.what)
    z = black.encode(x)
    assert same(white.encode(1 - x), z)
    assert same(white.sample_posterior(other, seeded()), black.sample_posterior(q, seeded()))
    assert torch.equal(white.prior_log_prob(z), black.prior_log_prob(z))
    assert same(white.sample_prior(6, generator=seeded()), black.sample_prior(6, generator=seeded()))
    assert torch.equal(white.render(z, steps=True), 1 - black.render(z, steps=True))
    assert torch.equal(white.bank.parts, 1 - black.bank.parts)
    nothing = PartSequence(torch.zeros_like(z.whether), z.where, z.what)
    assert (white.render(nothing, steps=True) == 1).all()


@pytest.mark.parametrize(("order", "size"), [("aligned", GREY), ("path", FEW)])
def test_relaxed_canvases_are_those_of_the_negative(order: str, size: dict[str, Any]) -> None:
    found = []
    black, white = pair(tiny_spec(order, **size))
    x = dyadic(6, 1, 7, 8)
    for model, image in ((black, x), (white, 1 - x)):
        q = model.posterior(image)
        canvas, z = VAEObjective(model, VAEConfig())._draw(q, 0.2, seeded())
        slope = torch.autograd.grad((model.grid.ink(canvas) ** 2).sum(), q.what)[0]
        found.append((canvas, z, slope))
    (dark, z, slope), (bright, other, its_slope) = found
    assert same(z, other)
    torch.testing.assert_close(bright, 1 - dark)
    torch.testing.assert_close(its_slope, slope, rtol=1e-4, atol=1e-5)
    assert slope.any()
