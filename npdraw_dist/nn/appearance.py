"""Gaussian latents u for details that parts cannot express, such as slant. They are not in the paper.

The decoder takes u and the canvas, on which the parts are drawn, as inputs. In `GlobalAppearance`, u is a
vector for each image, with p(u) = N(0, I). In `LocalAppearance`, u is a map with D numbers for each cell of
4x4 pixels of the canvas, and a network computes the prior p(u|canvas).
Shapes: B batch, D latents, C channels, H x W image, h x w canvas, W channels of the decoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.nn.blocks import (
    ExactConv2d,
    ExactLinear,
    ResidualBlock,
    at_least_float32,
    group_norm,
    zeroed,
)
from npdraw_dist.nn.relaxations import Gaussian

LOG_STD = (-8.0, 4.0)  # bounds of the logarithm of a standard deviation
WIDTH = 32  # channels of the networks that infer and decode u
COARSE = 8  # channels of the coarse feature map that `GlobalAppearance` computes from u


@dataclass(frozen=True)
class Inferred:
    """q(u|x, canvas) and p(u|canvas). p: None means N(0, I), which needs fewer operations."""

    q: Gaussian
    p: Gaussian | None

    def kl(self) -> Tensor:
        """KL(q || p), (B,) nats."""
        mean = self.q.mean if self.p is None else self.p.standardised(self.q.mean)
        squares = mean.square() + (2 * self._log_std).exp()
        return ((squares - 1) / 2 - self._log_std).flatten(1).sum(1)

    def log_ratio(self, u: Tensor) -> Tensor:
        """log q(u|x, canvas) - log p(u|canvas), (B,) nats."""
        squares = (u if self.p is None else self.p.standardised(u)).square()
        return ((squares - self.q.standardised(u).square()) / 2 - self._log_std).flatten(1).sum(1)

    @property
    def _log_std(self) -> Tensor:
        """The logarithm of the ratio of q's standard deviation to p's."""
        return self.q.log_std if self.p is None else self.q.log_std - self.p.log_std


class Donor(NamedTuple):
    """The u and canvas of a drawing that an edit uses. A donor with B = 1 is used for all edited drawings.

    u: (B, ...); None stands for the mean of p(u|canvas). canvas: (B, C, h, w). own: bool (B, 1, h, w), true
    at pixels where the edited drawing may take this u; None means all pixels.
    """

    u: Tensor | None
    canvas: Tensor
    own: Tensor | None = None


class Appearance(nn.Module, ABC):
    """Computes p(u|canvas), q(u|x, canvas), and features of u, which the decoder adds to its own features.

    standard: whether p(u|canvas) is N(0, I). shape: the shape of u for one image.
    """

    standard: ClassVar[bool] = False
    shape: tuple[int, ...]

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.scale, self.background = spec.downscale, spec.grid.background
        _, height, width = spec.image_shape
        self.size = -(-height // (2 * self.scale)), -(-width // (2 * self.scale))
        self.coarse_size = -(-self.size[0] // 2), -(-self.size[1] // 2)

    @abstractmethod
    def prior(self, canvas: Tensor) -> Gaussian:
        """canvas (B, C, h, w) -> p(u|canvas)."""

    @abstractmethod
    def posterior(self, x: Tensor, canvas: Tensor) -> Gaussian:
        """x (B, C, H, W), canvas (B, C, h, w) -> q(u|x, canvas)."""

    @abstractmethod
    def features(self, u: Tensor) -> Tensor:
        """u -> features for the decoder, (B, W, h / 2, w / 2), sides rounded up; all 0 before training."""

    @abstractmethod
    def joined(self, canvas: Tensor, donors: Sequence[Donor]) -> Tensor:
        """Returns u (B, ...) for an edited canvas (B, C, h, w), taken from the donors."""

    def infer(self, x: Tensor, canvas: Tensor) -> Inferred:
        """x (B, C, H, W), canvas (B, C, h, w) -> q(u|x, canvas) and p(u|canvas)."""
        return Inferred(self.posterior(x, canvas), None if self.standard else self.prior(canvas))

    def cells(self, canvas: Tensor, x: Tensor | None = None) -> Tensor:
        """Scales canvas, and x if given, to [-1, 1], and moves cells of 2x2 canvas pixels to the channels."""
        seen = canvas if x is None else torch.cat([F.pixel_unshuffle(x, self.scale), canvas], 1)
        odd = (0, seen.shape[-1] % 2, 0, seen.shape[-2] % 2)
        return F.pixel_unshuffle(F.pad(seen, odd, value=self.background) * 2 - 1, 2)


class GlobalAppearance(Appearance):
    """A vector u of `vae.latents` numbers for each image."""

    standard = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.latents, width, channels = spec.latent_count, WIDTH, spec.image_shape[0]
        self.shape = (self.latents,)
        small = -(-self.coarse_size[0] // 2) * -(-self.coarse_size[1] // 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(4 * channels * (self.scale**2 + 1), width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            ExactLinear(width * small, 2 * self.latents),
        )
        self.spread = nn.Linear(self.latents, COARSE * self.coarse_size[0] * self.coarse_size[1])
        self.out = zeroed(nn.Conv2d(COARSE, spec.decoder_width, 3, padding=1))

    def prior(self, canvas: Tensor) -> Gaussian:
        """N(0, I)."""
        zeros = canvas.new_zeros(len(canvas), self.latents)
        return Gaussian(zeros, zeros)

    def posterior(self, x: Tensor, canvas: Tensor) -> Gaussian:
        return _gaussian(self.encoder(self.cells(canvas, x)))

    def joined(self, canvas: Tensor, donors: Sequence[Donor]) -> Tensor:
        """The first donor's u, or zeros (the mean of the prior) if this u is None."""
        u = donors[0].u
        return self.prior(canvas).mean if u is None else u.expand(len(canvas), -1)

    def features(self, u: Tensor) -> Tensor:
        coarse = F.silu(self.spread(u)).view(-1, COARSE, *self.coarse_size)
        return self.out(F.interpolate(coarse, size=self.size))


class LocalAppearance(Appearance):
    """A map u (B, D, h / 4, w / 4), sides rounded up, with D numbers for each cell of 4x4 canvas pixels."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        latents, width, cell = spec.latent_count, WIDTH, 4 * spec.image_shape[0]
        self.shape = (latents, *self.coarse_size)
        self.of_canvas = _coarse(cell, width, 2 * latents)
        zeroed(self.of_canvas[-1])  # type: ignore[arg-type]  # this layer is an ExactConv2d
        self.of_image = _coarse(cell * (spec.downscale**2 + 1), width, 2 * latents)
        self.spread = nn.Conv2d(latents, width, 3, padding=1)
        self.out = zeroed(nn.ConvTranspose2d(width, spec.decoder_width, 4, 2, 1))

    def prior(self, canvas: Tensor) -> Gaussian:
        return _gaussian(self.of_canvas(self.cells(canvas)))

    def posterior(self, x: Tensor, canvas: Tensor) -> Gaussian:
        return _gaussian(self.of_image(self.cells(canvas, x)))

    def joined(self, canvas: Tensor, donors: Sequence[Donor]) -> Tensor:
        """Each cell takes u from the first donor with an equal canvas in the cell, else the prior's mean."""
        joined = self.prior(canvas).mean
        for donor in reversed(donors):
            own = self.prior(donor.canvas).mean if donor.u is None else donor.u
            differs = (canvas != donor.canvas).any(1, keepdim=True)
            differs = (differs if donor.own is None else differs | ~donor.own).to(joined.dtype)
            joined = torch.where(F.max_pool2d(differs, 4, ceil_mode=True) == 0, own, joined)
        return joined

    def features(self, u: Tensor) -> Tensor:
        return self.out(F.silu(self.spread(u)))[..., : self.size[0], : self.size[1]]


def make_appearance(spec: ModelSpec) -> Appearance | None:
    """The networks for u that `spec` describes; None if the model has no u."""
    if spec.latent_map:
        return LocalAppearance(spec)
    return GlobalAppearance(spec) if spec.latent_count else None


def _coarse(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """A network that maps features of 2x2 cells to `outputs` channels at half the resolution, rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, stride=2, padding=1),
        ResidualBlock(width),
        group_norm(width),
        nn.SiLU(),
        ExactConv2d(width, outputs, 3, padding=1),
    )


def _gaussian(numbers: Tensor) -> Gaussian:
    """Makes a Gaussian from numbers (B, 2 D, ...), the means followed by the log standard deviations."""
    mean, log_std = at_least_float32(numbers).chunk(2, 1)
    return Gaussian(mean, log_std.clamp(*LOG_STD))
