"""The interface of a kind of model, which is a class registered as an entry point of `npdraw_dist.kinds`.

A new kind subclasses `baselines.base.Baseline`, which adds training, scores and pictures (docs/kinds.md).
Shapes: B images, N samples, C channels, H x W image.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from npdraw_dist.baselines.latents import PriorDraws
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.noise import Noise
from npdraw_dist.nn.generative import Importance
from npdraw_dist.nn.hub import HubModel


class Kind(HubModel):
    """A VAE that is built from its spec alone. title: the name of the kind in reports."""

    default_latents: ClassVar[int]  # the default of baseline.latents
    default_steps: ClassVar[int] = 1  # the default of baseline.steps
    has_sequence: ClassVar[bool] = False  # whether it has a prior over a sequence, set by section `prior`
    has_places: ClassVar[bool] = False  # whether it draws at places of a grid, set by section `grid`
    searched: ClassVar[Mapping[str, Sequence[float]]] = {}  # setting -> values that a comparison tries
    spec: BaselineSpec

    def embed(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> what the encoder computes before any draw, (B, ...); (B, 0) by default."""
        return x.new_empty(len(x), 0)

    @abstractmethod
    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        """Draws one z ~ q(z|x) for each of B images, and scores it. Each field of the result is (B,)."""

    @abstractmethod
    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        """Draws n samples from the prior. temperature: multiplies standard deviations, divides logits."""
