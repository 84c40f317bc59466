"""What stays float32 where autocast computes products in bfloat16.

bfloat16 has 8 significant bits: a logit of 500 has an error of 1, a nat of q(z|x). So the layers that give
logits, log-probabilities or parameters of a likelihood, a few hundredths of the work, stay float32.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 where autocast left less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exactly(like: Tensor) -> AbstractContextManager[object]:
    """Disables autocast on the device of `like`; pass arguments through `at_least_float32`."""
    kind = like.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)  # meta has no autocast: asking is an error
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class _Exact(nn.Module):
    """A layer that computes in float32 under autocast. The names of its weights are those of the layer."""

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Any:
        with exactly(input):
            return super().forward(at_least_float32(input), *args, **options)


class ExactLinear(_Exact, nn.Linear):
    """`nn.Linear` in float32."""


class ExactConv2d(_Exact, nn.Conv2d):
    """`nn.Conv2d` in float32."""


class ExactConvTranspose2d(_Exact, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` in float32."""


class ExactLSTMCell(_Exact, nn.LSTMCell):
    """`nn.LSTMCell` in float32, its state too, since errors of a state add up over steps."""
