"""Dropout against what it must be in the mean, and torch's interface of it."""

import pytest
import torch

from npdraw_dist.nn.blocks import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(7, 11, 1301), (100_001,)])
def test_a_value_is_zeroed_with_probability_p(p: float, shape: tuple[int, ...]) -> None:
    """Within four standard deviations; the others are scaled so that the mean stays."""
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(shape))
    zeroed = float((out == 0).double().mean())
    assert abs(zeroed - p) < 4 * (p * (1 - p) / out.numel()) ** 0.5
    torch.testing.assert_close(out[out != 0], torch.full(((out != 0).sum(),), 1 / (1 - p)), rtol=1e-4, atol=0)


def test_neighbours_are_independent() -> None:
    """Values that share 64 random bits: both are zeroed with probability p^2."""
    torch.manual_seed(0)
    p, groups = 0.3, Dropout(0.3)(torch.ones(200_000, 4)) == 0
    for other in (1, 2, 3):
        both = float((groups[:, 0] & groups[:, other]).double().mean())
        assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / len(groups)) ** 0.5


def test_the_gradient_passes_where_the_value_does() -> None:
    torch.manual_seed(0)
    x = torch.rand(1000, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / x.detach())


def test_the_seed_gives_the_mask_again() -> None:
    x, masks = torch.ones(1001), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_nothing_is_dropped_in_evaluation_or_without_a_chance() -> None:
    x = torch.rand(100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
