"""The decoder's last convolution in TF32: the operation is the plain one, and 10 bits cost little."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.tf32 import Tf32Conv2d, tf32_convolution
from tests.helpers.tiny_models import seeded
from tests.nn.test_precision import prepared


def rounded(x: Tensor) -> Tensor:
    """float32 with a mantissa of 10 bits, as a GPU's TF32 products take it."""
    return (x.view(torch.int32) + 2**12).bitwise_and_(-(2**13)).view(torch.float32)


def test_the_operation_is_a_convolution_with_its_gradients() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.rand(2, 3, 6, 5), torch.rand(4, 3, 3, 3), torch.rand(4)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding)

    found = []
    for function in (tf32_convolution, plain):
        given = [value.clone().requires_grad_() for value in (x, weight, bias)]
        out = function(given[0], given[1], given[2], 1)
        out.square().sum().backward()
        found.append([out, *(value.grad for value in given)])
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)  # type: ignore[arg-type]
    torch.library.opcheck(tf32_convolution, (x, weight, bias, 1))


def test_only_the_last_convolution_of_a_decoder_may_be_in_tf32() -> None:
    model = prepared("digits", True)[0].model
    allowed = [name for name, layer in model.named_modules() if isinstance(layer, Tf32Conv2d)]
    assert allowed == ["decoder.last"]


@pytest.mark.parametrize("name", ["digits", pytest.param("emoji", marks=pytest.mark.slow)])
def test_ten_bits_change_a_likelihood_by_less_than_a_hundredth_of_a_nat(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, few = prepared(name, True)
    model = trained.model
    x = binarized(few.images, model.spec.binarize, seeded())
    exact = model.log_weights(x, k=2, generator=seeded())
    before = nn.Conv2d._conv_forward

    def narrow(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(layer, Tf32Conv2d):
            x, weight = rounded(x), rounded(weight)
        return before(layer, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", narrow)
    change = (model.log_weights(x, k=2, generator=seeded()) - exact).abs()
    assert 0 < change.max() < 0.01 * x[0].numel() / 64  # digits have 64 pixels
