"""A convolution whose products a GPU takes in TF32, of 10 bits, where all others stay in float32.

It is a custom operation: `torch.compile` cannot trace the switch that cuDNN has for all convolutions.
Shapes: B batch, C channels in, D channels out, H x W pixels, kernels of S x S.
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.nn.blocks import ExactConv2d, at_least_float32, exactly


def _allowed() -> AbstractContextManager[None]:
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=True,
    )


@torch.library.custom_op("npdraw::tf32_convolution", mutates_args=())
def tf32_convolution(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """x (B, C, H, W), weight (D, C, S, S), bias (D,) -> (B, D, ...), as `F.conv2d`."""
    with _allowed():
        return F.conv2d(x, weight, bias, padding=padding)


@torch.library.custom_op("npdraw::tf32_convolution_backward", mutates_args=())
def _backward(gradient: Tensor, x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    shape, once = [padding, padding], [1, 1]
    with _allowed():
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], once, shape, once, False, [0, 0], 1, [True, True, True]
        )
    return found


@tf32_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding)


@_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    return (*_backward(gradient, *ctx.saved_tensors, ctx.padding), None)


tf32_convolution.register_autograd(_differentiate, setup_context=_keep)


class Tf32Conv2d(ExactConv2d):
    """`nn.Conv2d` of stride 1, in TF32 under a GPU's autocast, and in float32 without it and on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda or not torch.is_autocast_enabled("cuda"):
            return super().forward(input)
        assert self.bias is not None
        assert isinstance(self.padding, tuple)
        with exactly(input):
            found: Tensor = tf32_convolution(at_least_float32(input), self.weight, self.bias, self.padding[0])
        return found
