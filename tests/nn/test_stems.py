"""The table of what a step adds to the prior's canvas. Shapes: L places, K parts, R rank, W channels."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.config.load import build
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import FactorisedTable, JointTable, Prior
from tests.helpers.tiny_models import random_sequence, tiny_prior, tiny_spec

SPEC = tiny_spec("raster", table="factorised", image_shape=(3, 4, 6), parts=5, steps=4)  # six places


def factorised(spec: ModelSpec = SPEC) -> FactorisedTable:
    table = tiny_prior(spec).drawn
    assert isinstance(table, FactorisedTable)
    return table


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def test_a_vector_is_the_product_of_its_place_and_its_part() -> None:
    """In NumPy, pair by pair."""
    table = factorised()
    weights = {name: value.detach().numpy() for name, value in table.state_dict().items()}
    pixels = weights["bank_parts"].reshape(5, -1)
    pixels = (pixels - pixels.mean()) / pixels.std()
    for place in range(6):
        for part in range(5):
            hidden = weights["pixels.0.weight"] @ pixels[part] + weights["pixels.0.bias"]
            seen = weights["pixels.2.weight"] @ np.vectorize(gelu)(hidden) + weights["pixels.2.bias"]
            code = seen + weights["code"][part]
            expected = torch.from_numpy(weights["out.weight"] @ (weights["place"][place] * code))
            found = table(torch.tensor(place), torch.tensor(part))
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("table", ["joint", "factorised"])
def test_all_ways_to_a_vector_agree(table: str) -> None:
    found = tiny_prior(tiny_spec("raster", table=table, image_shape=(1, 4, 6), parts=5, steps=4)).drawn
    assert isinstance(found, FactorisedTable | JointTable)
    places, parts = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    assert found.weights().shape == (30, 16)
    torch.testing.assert_close(found(places, parts).flatten(0, 1), found.weights())
    torch.testing.assert_close(found.fixed()(places, parts).flatten(0, 1), found.weights())
    assert len(found.weights().unique(dim=0)) == 30


def test_the_bank_gives_the_table_its_pixels() -> None:
    torch.manual_seed(0)
    model = NPDraw(SPEC).eval()
    z = random_sequence(SPEC, 16)
    before = model.prior_log_prob(z)
    bank = PartBank(torch.rand(model.bank_parts.shape))
    model.set_bank(bank)
    assert not torch.allclose(model.prior_log_prob(z), before, atol=1e-6)
    again = NPDraw(SPEC).eval()
    again.load_state_dict(model.state_dict())  # the weights bring them too
    assert torch.equal(again.prior_log_prob(z), model.prior_log_prob(z))


def test_parts_that_look_alike_start_alike() -> None:
    table = factorised()
    bank = torch.rand(5, 3, 2, 2)
    bank[1] = bank[0] + 0.01
    table.set_bank(bank)
    with torch.no_grad():
        table.code.zero_()
    vectors = table(torch.arange(6)[:, None], torch.arange(5))  # (L, K, W)
    apart = (vectors[:, 1:] - vectors[:, :1]).square().sum((0, 2))
    assert apart.argmin() == 0
    assert apart[0] < 0.05 * apart[1:].min()


def test_every_parameter_is_trained() -> None:
    prior = tiny_prior(SPEC)
    prior.log_prob(random_sequence(SPEC, 64)).sum().backward()
    for name, parameter in prior.drawn.named_parameters():  # type: ignore[union-attr]
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


def parameters(table: str, side: int = 64, parts: int = 1000, **prior: Any) -> int:
    """Of a prior for a bank of `parts` on images of `side` pixels, with a place at every pixel."""
    settings: dict[str, Any] = {
        "data": {"source": "imagefolder", "path": ".", "image_size": side, "channels": 3, "binarize": "none"},
        "grid": {"patch": 5, "stride": 1},
        "bank": {"size": parts},
        "parse": {"order": "path", "steps": 32},
        "prior": {"width": 128, "table": table, **prior},
        "vae": {"likelihood": "logistic"},
    }
    with torch.device("meta"):
        return sum(p.numel() for p in Prior(ModelSpec.of(build(settings))).parameters())


def test_a_large_grid_takes_a_small_prior() -> None:
    assert parameters("joint") > 3600 * 1000 * 128
    assert parameters("factorised") < 6_000_000


def test_parameters_grow_with_places_and_parts_not_with_their_product() -> None:
    def mixed(table: str) -> int:
        """What places and parts add together beyond what each adds alone."""
        few, many = (16, 64), (10, 1000)
        n = {(side, k): parameters(table, side, k) for side in few for k in many}
        return n[64, 1000] - n[64, 10] - n[16, 1000] + n[16, 10]

    assert mixed("factorised") == 0
    assert mixed("joint") == (60**2 - 12**2) * 990 * 128
