"""What all kinds of models have in common.

Shapes: k draws, B images, N samples, A of them animated, T steps, C channels, H x W image, h x w canvas.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from npdraw_dist.config.networks import VAEConfig
from npdraw_dist.config.spec import Spec
from npdraw_dist.core.errors import UserError, require_positive
from npdraw_dist.core.images import require_images, to_batch
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.objective import Objective
from npdraw_dist.nn.animation import GROWING_FRAMES, generation_gif
from npdraw_dist.nn.likelihoods import binarized, make_likelihood
from npdraw_dist.nn.relaxations import total_kl

# Most images computed at once. On a CPU, the activations of more do not fit the cache. A GPU waits for
# launches with fewer. A chunk holds at most 67 million parameters of the likelihood.
CHUNK, GPU_CHUNK = 256, 512
LEAST_HEAT = 1e-6  # the least temperature that counts
CHUNK_NUMBERS = 2**26  # likelihood parameters of a chunk, at most: large images have fewer rows in one


@dataclass(frozen=True)
class Importance:
    """k draws z ~ q(z|x) for each of B images, in nats, each (k, B).

    log_w: log p(x|z) + log p(z) - log q(z|x). reconstruction: log p(x|z). kl: the parts of KL(q || p) by
    name, averaged where that is possible (`nn.steps`).
    """

    log_w: Tensor
    reconstruction: Tensor
    kl: Mapping[str, Tensor]

    @property
    def analytic(self) -> Tensor:
        """(k, B): reconstruction minus the analytic KL. Only its mean is a bound, the ELBO."""
        return self.reconstruction - total_kl(self.kl)


@dataclass(frozen=True)
class SampleTrace:
    """N samples, and the steps that made the first A of them.

    images: (N, C, H, W) means of p(x|z), in [0, 1]. canvas: (N, C, h, w), if the model has one. codes:
    latents by name. steps: (A, T, C, h, w), the canvas after each step; decoded: (A, T, C, H, W), its image;
    drawn: (A, T) bool; corners: (A, T, 2), top-left pixel (row, column) of what was drawn; sides: (A, T), in
    pixels. frames: the most that draw in a GIF.
    """

    images: Tensor
    canvas: Tensor | None
    steps: Tensor
    decoded: Tensor
    drawn: Tensor
    corners: Tensor
    sides: Tensor
    codes: Mapping[str, Tensor]
    frames: int = GROWING_FRAMES

    def arrays(self) -> dict[str, Any]:
        """Images, canvas and codes by name."""
        drawn = {} if self.canvas is None else {"canvas": self.canvas}
        found = {"images": self.images, **drawn, **self.codes}
        return {name: value.cpu().numpy() for name, value in found.items()}

    def gif(self) -> bytes:
        """A GIF of the first A samples, in which the canvas grows part by part above the decoded image."""
        boxes = (self.corners.cpu(), self.sides.cpu())
        return generation_gif(self.steps.cpu(), self.drawn.cpu(), *boxes, self.decoded.cpu(), self.frames)


class GenerativeModel(nn.Module, ABC):
    """p(x|z) p(z) with an encoder q(z|x). A subclass that lacks a method raises TypeError at construction."""

    title: ClassVar[str]  # what reports call the kind
    spec: Spec
    has_regions: ClassVar[bool] = True  # whether `swapped` has something of a region

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.likelihood = make_likelihood(spec.likelihood, spec.image_shape[0], spec.components)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def rows_at_once(self) -> int:
        """Rows, an image with one draw each, that are computed at once. The noise depends on it."""
        _, height, width = self.spec.image_shape
        numbers = self.likelihood.parameters_per_pixel * height * width
        return max(min(CHUNK if self.device.type == "cpu" else GPU_CHUNK, CHUNK_NUMBERS // numbers), 1)

    @torch.no_grad()
    def importance(
        self, x: Tensor, k: int, generator: Noise = None, condition: Tensor | None = None
    ) -> Importance:
        """k draws z ~ q(z|x) for x (B, C, H, W), 0 or 1 if binary. Raises ValueError on other shapes.

        condition: tokens (B, A), for p(x|condition) in place of p(x).
        """
        require_images(x, self.spec.image_shape)
        most = self.rows_at_once
        pieces, told = x.split(most), [] if condition is None else condition.split(most)
        models = [self.given(some) for some in told] or [self] * len(pieces)
        parts = [
            in_chunks(k, len(some), most, model.drawer(some, generator))
            for some, model in zip(pieces, models, strict=True)
        ]
        return joined(parts, lambda values: torch.cat(values, 1))

    def given(self, condition: Any, guidance: float = 1.0) -> Self:
        """The same model for images of a condition. Raises UserError if the kind takes none."""
        raise UserError(f"a model of kind {self.spec.kind} takes no condition")

    @abstractmethod
    def drawer(self, x: Tensor, generator: Noise) -> Callable[[int], Importance]:
        """x (B, C, H, W) -> a function of `copies`: as many draws for each image, fields (copies * B,)."""

    def log_weights(self, x: Any, k: int = 50, generator: Noise = None) -> Tensor:
        """(k, B) nats: log p(x|z) + log p(z) - log q(z|x) of k draws z ~ q(z|x) (Burda et al. 2016).

        Of `model.given(condition)` those of p(x|condition), one condition for all images. Raises UserError.
        """
        if isinstance(x, Tensor):
            require_images(x, self.spec.image_shape)
        require_positive("k", k)
        return self.importance(self.as_input(x), k, generator).log_w

    def temperature_of(self, asked: float | None) -> float:
        """That of samples: as asked, or the model's own. Raises UserError if it is not above 0.

        At LEAST_HEAT a step draws the most likely already; logits divided by less overflow.
        """
        if asked is not None and not asked > 0:
            raise UserError(f"temperature is {asked}; it must be above 0")
        return self.spec.temperature if asked is None else max(asked, LEAST_HEAT)

    @property
    def blank_pixel(self) -> float:
        """What transparent pixels of a picture become: 0.0 black, 1.0 white."""
        return 0.0

    def as_input(self, images: Any) -> Tensor:
        """Images of any kind (`core.images.to_batch`) -> x (B, C, H, W) as the encoder takes it.

        If the model binarizes, pictures (uint8, bool, PIL) become 0 or 1 by x > 0.5. Floats are taken as they
        are. Raises UserError on another kind, size, type or range.
        """
        x = to_batch(images, self.spec.image_shape, self.blank_pixel).to(self.device)
        if x.dtype == torch.uint8:
            x = binarized(x, "none" if self.spec.binarize == "none" else "threshold", None)
        return x.to(next(self.parameters()).dtype)

    @abstractmethod
    def objective(self, config: VAEConfig) -> "ModelObjective":
        """What stage `vae` minimises to train the model."""

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, C, H, W) -> what the encoder finds in it, by name, each (B,). Nothing by default."""
        return {}

    @abstractmethod
    def features(self, images: Any) -> Tensor:
        """Images of any kind -> (B, D), what the encoder sees in them. Raises UserError as `as_input`."""

    @abstractmethod
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        """Mean images (B, C, H, W) of what `a` is, but for the region `inside`, where it is what `b` is.

        a, b: images (B, C, H, W) as the encoder takes them. inside: (B, H, W) bool; a place or cell is in the
        region if its centre is. A model without places swaps a part of its latents as large as the region.
        With a = b it is the reconstruction. Raises UserError if the kind has nothing of a region.
        """

    @abstractmethod
    def sample(
        self, n: int, generator: Noise = None, temperature: float | None = None, *, seed: int | None = None
    ) -> Tensor:
        """n mean images (n, C, H, W) of p(x|z), z from the prior. seed: in place of a generator.

        temperature: of the prior; None: `spec.temperature`, also below.
        """

    @abstractmethod
    def sample_pixels(self, n: int, generator: Noise = None, temperature: float | None = None) -> Tensor:
        """n images (n, C, H, W) drawn from p(x|z), z from the prior."""

    @abstractmethod
    def sample_trace(self, n: int, generator: Noise = None, temperature: float | None = None) -> SampleTrace:
        """n samples, the first ANIMATED of them step by step."""


class ModelObjective(Objective):
    """The objective of a whole model."""

    model: GenerativeModel
    config: VAEConfig

    def __init__(self, model: GenerativeModel, config: VAEConfig) -> None:
        super().__init__()
        self.model, self.config = model, config


def at_centres(inside: Tensor, centres: Tensor) -> Tensor:
    """inside (B, H, W) bool at the pixels `centres` (L, 2), moved to the edge where they are off, (B, L)."""
    rows, columns = (centres[:, axis].clamp(0, inside.shape[1 + axis] - 1) for axis in (0, 1))
    return inside[:, rows, columns]


def seeded(device: torch.device, generator: Noise, seed: int | None) -> Noise:
    """The generator, or one of `seed`. Raises UserError if both are given."""
    if seed is None:
        return generator
    if generator is not None:
        raise UserError("give a generator or a seed, not both")
    return torch.Generator(device).manual_seed(seed)


def in_chunks(k: int, batch: int, most: int, draw: Callable[[int], Importance]) -> Importance:
    """k draws for each of `batch` images, by `draw` of `GenerativeModel.drawer`, `most` rows at once."""
    at_once = max(most // batch, 1)
    parts = [draw(min(at_once, k - done)) for done in range(0, k, at_once)]
    return joined(parts, lambda values: torch.cat(values).view(k, batch))


def joined(parts: Sequence[Importance], join: Callable[[list[Tensor]], Tensor]) -> Importance:
    """Each field of the parts by `join`."""
    kl = {name: join([part.kl[name] for part in parts]) for name in parts[0].kl}
    return Importance(join([p.log_w for p in parts]), join([p.reconstruction for p in parts]), kl)
