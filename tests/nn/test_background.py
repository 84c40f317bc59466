"""On white everything is as on black for the negative: x for 1 - x, each part for its negative.

Pixels are multiples of 1/256, of which 1 - x is exact.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.authors.training import AuthorsObjective
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from tests.helpers.tiny_models import random_drawings, random_sequence, tiny_model, tiny_spec

GREY: dict[str, Any] = {"image_shape": (1, 7, 8), "patch": 3, "stride": 3, "parts": 4, "steps": 9}
OVERLAPPING: dict[str, Any] = GREY | {"stride": 2, "steps": 12}
HALF: dict[str, Any] = OVERLAPPING | {"patch": 4, "stride": 2, "steps": 9, "parts": 5}
COLOUR: dict[str, Any] = {
    "image_shape": (3, 10, 14),
    "downscale": 2,
    "patch": 2,
    "stride": 2,
    "parts": 4,
    "steps": 12,
    "likelihood": "logistic",
    "binarize": "none",
}
SIZES = [GREY, OVERLAPPING, HALF, COLOUR]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dyadic(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(257, shape, generator=seeded(seed)) / 256


def pair(spec: ModelSpec) -> tuple[NPDraw, NPDraw]:
    """A model on black, and the one on white with the same weights but for the bank, which is negative.

    The posterior's fit is set by `set_bank`.
    """
    black = tiny_model(spec)
    white = NPDraw(spec.model_copy(update={"background": "white"})).eval()
    white.load_state_dict(black.state_dict())
    parts = dyadic(*black.bank_parts.shape, seed=2)
    black.set_bank(PartBank(parts))
    white.set_bank(PartBank(1 - parts))
    return black, white


def same(a: PartSequence, b: PartSequence) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("whether", "where", "what"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("network", ["ours", "authors"])
@torch.no_grad()
def test_the_logits_of_q_are_those_of_the_negative(network: str, size: dict[str, Any]) -> None:
    black, white = pair(tiny_spec("aligned", "independent", network, **size))
    x = dyadic(3, *black.spec.image_shape)
    q, other = black.infer(x), white.infer(1 - x)
    assert torch.equal(q.whether, other.whether)
    assert torch.equal(q.what, other.what)
    assert not torch.equal(white.infer(x).what, other.what)


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_encodes_draws_and_renders_as_the_negative(order: str) -> None:
    size = OVERLAPPING if order == "aligned" else OVERLAPPING | {"steps": 5}
    black, white = pair(tiny_spec(order, **size))
    x = dyadic(16, 1, 7, 8)
    z = black.encode(x)
    assert same(white.encode(1 - x), z)
    drawn = white.sample_posterior(white.infer(1 - x), seeded())
    assert same(drawn, black.sample_posterior(black.infer(x), seeded()))
    assert torch.equal(white.render(z), 1 - black.render(z))
    assert torch.equal(white.render(z, steps=True), 1 - black.render(z, steps=True))
    assert torch.equal(white.bank.parts, 1 - black.bank.parts)
    nothing = PartSequence(torch.zeros_like(z.whether), z.where, z.what)
    assert (white.render(nothing, steps=True) == 1).all()


@pytest.mark.parametrize(("order", "network"), [("aligned", "authors"), ("raster", "ours")])
@pytest.mark.parametrize("size", [GREY, OVERLAPPING])
@torch.no_grad()
def test_the_prior_sees_ink_and_what_is_covered(order: str, network: str, size: dict[str, Any]) -> None:
    """Teacher forcing and the cached sampler each have canvases of their own."""
    black, white = pair(tiny_spec(order, "independent", network, **size))
    z = random_sequence(black.spec, 6)
    assert torch.equal(white.prior_log_prob(z), black.prior_log_prob(z))
    assert same(white.sample_prior(6, seeded()), black.sample_prior(6, seeded()))


@pytest.mark.parametrize("order", ["aligned", "path"])
@pytest.mark.parametrize("size", [GREY, OVERLAPPING])
def test_relaxed_canvases_are_those_of_the_negative(order: str, size: dict[str, Any]) -> None:
    size = size if order == "aligned" else size | {"steps": 5}
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


def test_the_authors_surrogate_is_that_of_the_negative() -> None:
    spec = tiny_spec("aligned", "independent", "authors", **GREY)
    metrics = []
    black, white = pair(spec)
    x, parse = dyadic(6, 1, 7, 8), random_drawings(spec, 6)
    for model, image in ((black, x), (white, 1 - x)):
        objective = AuthorsObjective(model, VAEConfig())
        metrics.append(objective._relaxed(image, model.posterior(image), parse, 0.3, seeded())[1])
    for name in ("kl_whether", "kl_where", "kl_what"):
        torch.testing.assert_close(metrics[1][name], metrics[0][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_on_white_every_trained_parameter_has_a_finite_gradient(progress: float) -> None:
    _, white = pair(tiny_spec("path", **OVERLAPPING))
    objective = VAEObjective(white, VAEConfig())
    images = torch.randint(256, (6, 1, 7, 8), generator=seeded()).to(torch.uint8)
    objective(Batch.of(images, random_drawings(white.spec, 6)), progress, seeded())[0].mean().backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name == "model.temperature", name


def test_before_training_the_image_is_the_canvas() -> None:
    torch.manual_seed(0)
    model = NPDraw(tiny_spec(background="white", **COLOUR))
    assert (model.bank.parts == 1).all(), "an empty bank draws nothing"
    white = torch.ones(1, 3, 5, 7)
    assert float(model.decode(white).min()) > 0.9


def test_a_model_keeps_its_background(tmp_path: Path) -> None:
    for background, grey in (("black", 0.0), ("white", 1.0)):
        tiny_model(tiny_spec(background=background)).save_pretrained(tmp_path / background)
        again = NPDraw.from_pretrained(tmp_path / background)
        assert again.grid.background == grey
