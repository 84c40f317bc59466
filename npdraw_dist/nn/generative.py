"""What every generative model here offers, NP-DRAW and the baselines alike.

Shapes: k draws, B images, N samples, A of them animated, T steps, C channels, H x W image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from npdraw_dist.nn.likelihoods import Likelihood

# Images worked on at once where they are many: the activations of more do not fit the cache.
CHUNK = 256


@dataclass(frozen=True)
class Importance:
    """k draws z ~ q(z|x) for each of B images, in nats, each (k, B).

    log_w: log p(x|z) + log p(z) - log q(z|x). reconstruction: log p(x|z). kl: the parts of KL(q || p)
    by name, each step's analytic given the steps drawn before it.
    """

    log_w: Tensor
    reconstruction: Tensor
    kl: Mapping[str, Tensor]

    @property
    def analytic(self) -> Tensor:
        """(k, B): reconstruction less the analytic KL; its mean is the ELBO, its log-mean-exp no bound."""
        return self.reconstruction - torch.stack(list(self.kl.values())).sum(0)

    @classmethod
    def cat(cls, parts: "list[Importance]") -> "Importance":
        """All draws of several."""
        return cls(
            torch.cat([part.log_w for part in parts]),
            torch.cat([part.reconstruction for part in parts]),
            {name: torch.cat([part.kl[name] for part in parts]) for name in parts[0].kl},
        )


@dataclass(frozen=True)
class Drawing:
    """N samples and how they came about.

    images: (N, C, H, W) means of p(x|z), in [0, 1]. canvas: (N, C, h, w), or None where a model has none.
    codes: the latent variables by name. The rest is of the first A samples. steps: (A, T, C, h, w), the
    canvas after each step; decoded: (A, T, C, H, W), its image. drawn: (A, T) bool, something was drawn.
    corners: (A, T, 2), top-left pixel (row, column) of what was drawn; sides: (A, T), its side in pixels.
    """

    images: Tensor
    canvas: Tensor | None
    steps: Tensor
    decoded: Tensor
    drawn: Tensor
    corners: Tensor
    sides: Tensor
    codes: Mapping[str, Tensor]


class Spec(Protocol):
    """What every model's spec tells."""

    @property
    def kind(self) -> str: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def binarize(self) -> Any: ...

    @property
    def likelihood(self) -> Any: ...


class GenerativeModel(Protocol):
    """p(x|z) p(z) with an encoder q(z|x); an `nn.Module`."""

    likelihood: Likelihood

    @property
    def spec(self) -> Spec: ...

    @property
    def device(self) -> torch.device: ...

    def importance(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Importance:
        """k draws z ~ q(z|x) for x (B, C, H, W) as the likelihood takes it."""

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """n mean images (n, C, H, W) of p(x|z), z from the prior."""

    def sample_pixels(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """n images (n, C, H, W) drawn from p(x|z), z from the prior."""

    def draw(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0, animated: int = 8
    ) -> Drawing:
        """n samples, the first `animated` of them step by step."""

    def to(self, device: torch.device) -> Any: ...


def in_chunks(k: int, batch: int, draw: Callable[[int], Importance]) -> Importance:
    """`draw(copies)` until there are k draws for each of `batch` images, at most CHUNK rows at once."""
    parts, left, at_once = [], k, max(CHUNK // batch, 1)
    while left > 0:
        parts.append(draw(min(left, at_once)))
        left -= at_once
    return Importance.cat(parts)


def require_images(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises ValueError where x is not (B, C, H, W) of that shape."""
    if x.ndim != 4 or tuple(x.shape[1:]) != shape:
        raise ValueError(f"images are (B, {', '.join(map(str, shape))}), not {tuple(x.shape)}")
