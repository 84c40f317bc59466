"""The interface of a kind of model: a class that is registered as an entry point of `npdraw_dist.kinds`.

Write a subclass of `baselines.base.Baseline`, which adds training, scores and pictures (docs/kinds.md).
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
    """A VAE that is made from its spec alone. `title` is its name in reports."""

    default_latents: ClassVar[int]  # baseline.latents unless the user sets it
    default_steps: ClassVar[int] = 1  # baseline.steps unless the user sets it
    has_sequence: ClassVar[bool] = False  # whether it has a prior over a sequence (section `prior`)
    has_places: ClassVar[bool] = False  # whether it draws at the places of section `grid`
    searched: ClassVar[Mapping[str, Sequence[float]]] = {}  # setting -> values that a comparison tries
    spec: BaselineSpec

    def embed(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, ...): what the encoder computes before any draw. Empty by default."""
        return x.new_empty(len(x), 0)

    @abstractmethod
    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        """Draws one z ~ q(z|x) for each of B images, and scores it; each field is (B,)."""

    @abstractmethod
    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        """Draws n samples from the prior, whose standard deviations are multiplied by `temperature`."""
