"""What a kind of model must have: the class that an entry point of the group `npdraw_dist.kinds` names.

Write a subclass of `baselines.base.Baseline`, which makes training, scores and pictures of what is here
(docs/kinds.md). Shapes: B images, N samples, C channels, H x W image.
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
    """A VAE, made from its spec alone. Reports name it by `title`."""

    default_latents: ClassVar[int]  # baseline.latents, if none is given
    default_steps: ClassVar[int] = 1  # baseline.steps, if none is given
    has_sequence: ClassVar[bool] = False  # it has a prior over a sequence: section `prior` has its sizes
    has_places: ClassVar[bool] = False  # it draws at the places of section `grid`
    searched: ClassVar[Mapping[str, Sequence[float]]] = {}  # setting -> what a comparison's trials take
    spec: BaselineSpec

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ...): what the encoder computes of x before any draw. Empty by default."""
        return x.new_empty(len(x), 0)

    @abstractmethod
    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        """One draw z ~ q(z|x) for each of B images, each field (B,)."""

    @abstractmethod
    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        """n draws of the prior, its standard deviations times `temperature`."""
