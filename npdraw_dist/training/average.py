"""An exponential moving average of the weights, which is validated and passed on in their place."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

START = 10  # the average of the first n steps forgets at least as if it had START steps behind it


class Average:
    """The average of the parameters of `module` over about the last `images` images."""

    def __init__(self, module: nn.Module, images: float, batch_size: int) -> None:
        self.decay = math.exp(-batch_size / images)
        self.parameters = dict(module.named_parameters())
        self.weights = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """The weights after step `step`, from 0 on. Early ones, which are far off, are forgotten sooner."""
        decay = min(self.decay, (1 + step) / (START + step))
        update = get_ema_multi_avg_fn(decay)
        update(list(self.weights.values()), [value.detach() for value in self.parameters.values()], step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged weights in this block."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(kept)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the average of a checkpoint, by name."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(weights[name])
