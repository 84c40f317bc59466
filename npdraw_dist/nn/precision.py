"""What stays float32 where autocast computes products in bfloat16.

bfloat16 has 8 significant bits: a logit of 500 has an error of 1, a nat of q(z|x). So the layers that give
logits, log-probabilities or parameters of a likelihood compute their products in float32. They are a few
hundredths of a network's operations; the decoder's last layer has the largest share, a sixth of the decoder
in preset cifar10. The layers before them, most of the work, stay in bfloat16.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 where autocast left less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exactly(like: Tensor) -> AbstractContextManager[object]:
    """Disables autocast on the device of `like` in a block.

    Products then have the type of their arguments: pass those through `at_least_float32`.
    """
    return torch.autocast(like.device.type, enabled=False) if _autocast_is_on(like) else nullcontext()


def _autocast_is_on(like: Tensor) -> bool:
    kind = like.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)  # meta has no autocast: asking is an error


class _Exact(nn.Module):
    """A layer that computes in float32 under autocast. The names of its weights are those of the layer."""

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Tensor:
        if not _autocast_is_on(input):
            output: Tensor = super().forward(input, *args, **options)
            return output
        with torch.autocast(input.device.type, enabled=False):
            output = super().forward(at_least_float32(input), *args, **options)
        return output


class ExactLinear(_Exact, nn.Linear):
    """`nn.Linear` in float32."""


class ExactConv2d(_Exact, nn.Conv2d):
    """`nn.Conv2d` in float32."""


class ExactConvTranspose2d(_Exact, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` in float32."""


class ExactLSTMCell(nn.LSTMCell):
    """`nn.LSTMCell` in float32, its state too, since errors of a state add up over steps.

    It costs a GPU nothing: launching such small products takes longer than computing them.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        with exactly(input):
            return super().forward(at_least_float32(input), hx)
