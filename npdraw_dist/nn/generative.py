"""The base class of NP-DRAW and its baselines, and the classes of the scores and samples that they return.

Shapes: k draws, B images, A tokens of a condition, N samples, F traced samples, T steps, L places,
C channels, H x W image, h x w canvas.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from npdraw_dist.config.networks import VAEConfig
from npdraw_dist.config.spec import Spec
from npdraw_dist.core.images import require_images, to_batch
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.objective import Objective
from npdraw_dist.nn.animation import GROWING_FRAMES, generation_gif
from npdraw_dist.nn.likelihoods import binarized, make_likelihood
from npdraw_dist.nn.relaxations import total_kl
from npdraw_dist.system.errors import UserError, require_positive

# Largest number of images computed at once. On a CPU, the activations of more images do not fit in the cache.
# With fewer images, a GPU waits for kernel launches.
CHUNK, GPU_CHUNK = 256, 512
CHUNK_NUMBERS = 2**26  # largest number of likelihood parameters computed at once; matters for large images
LEAST_TEMPERATURE = 1e-6  # lower temperatures are raised to this one


# Logits need more than 16 bits (`nn.blocks`).
IN_16_BITS = (
    "keep float32, and for speed on a GPU call it inside torch.autocast('cuda', torch.bfloat16); for a small "
    "file, save_pretrained(folder, dtype=torch.float16)"
)


@dataclass(frozen=True)
class Importance:
    """Scores of k draws z ~ q(z|x) for each of B images. Each score is (k, B), in nats.

    log_w: log p(x|z) + log p(z) - log q(z|x). reconstruction: log p(x|z). kl: the terms of KL(q || p) by
    name, in closed form where one exists (`nn.steps`).
    """

    log_w: Tensor
    reconstruction: Tensor
    kl: Mapping[str, Tensor]

    @property
    def analytic(self) -> Tensor:
        """The reconstruction minus the KL, (k, B). Its expectation is the ELBO; one value is no bound."""
        return self.reconstruction - total_kl(self.kl)


@dataclass(frozen=True)
class SampleTrace:
    """N samples, and the steps that made the first F of them.

    images: (N, C, H, W), means of p(x|z), in [0, 1]. canvas: (N, C, h, w); None if the model has no canvas.
    steps: (F, T, C, h, w), the canvas after each step. decoded: (F, T, C, H, W), the image of each canvas.
    drawn: (F, T) bool, whether a step draws. corners: (F, T, 2), the top-left pixel (row, column) of the
    square that a step draws. sides: (F, T), the side of this square in pixels. codes: latents by name.
    frames: largest number of frames that add parts in the GIF.
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
        """Images, canvas and codes by name, as NumPy arrays."""
        drawn = {} if self.canvas is None else {"canvas": self.canvas}
        found = {"images": self.images, **drawn, **self.codes}
        return {name: value.cpu().numpy() for name, value in found.items()}

    def gif(self) -> bytes:
        """Makes a GIF of the first F samples, in which the canvas gains parts above the decoded image."""
        boxes = (self.corners.cpu(), self.sides.cpu())
        return generation_gif(self.steps.cpu(), self.drawn.cpu(), *boxes, self.decoded.cpu(), self.frames)


class GenerativeModel(nn.Module, ABC):
    """A model p(x|z) p(z) with an encoder q(z|x)."""

    title: ClassVar[str]  # the name of this kind of model in reports
    spec: Spec
    has_regions: ClassVar[bool] = True  # whether some latents belong to image regions, as `swapped` needs

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.likelihood = make_likelihood(spec.likelihood, spec.image_shape[0], spec.components)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What torch's `to`, `half` and others do to weights. Raises UserError if they would have 16 bits."""
        if (dtype := fn(torch.empty(0, dtype=torch.float32)).dtype).itemsize < 4:
            raise UserError(f"a model cannot compute in {dtype}; {IN_16_BITS}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def rows_at_once(self) -> int:
        """The largest number of draws computed at once, over all images. Draws from a seed depend on it."""
        _, height, width = self.spec.image_shape
        numbers = self.likelihood.parameters_per_pixel * height * width
        return max(min(CHUNK if self.device.type == "cpu" else GPU_CHUNK, CHUNK_NUMBERS // numbers), 1)

    @torch.no_grad()
    def importance(
        self, x: Tensor, k: int, generator: Noise = None, condition: Tensor | None = None
    ) -> Importance:
        """Scores k draws z ~ q(z|x) for each image x (B, C, H, W), with pixels 0 or 1 if the model binarizes.

        condition: tokens (B, A); if given, p(x|condition) replaces p(x). Raises ValueError if x has another
        shape.
        """
        require_images(x, self.spec.image_shape)
        most = self.rows_at_once
        pieces, conditions = x.split(most), [] if condition is None else condition.split(most)
        models = [self.given(tokens) for tokens in conditions] or [self] * len(pieces)
        parts = []
        for piece, model in zip(pieces, models, strict=True):
            draw, at_once = model._scorer(piece, generator), max(most // len(piece), 1)
            scores = [draw(min(at_once, k - done)) for done in range(0, k, at_once)]
            parts.append(joined(scores, lambda values: torch.cat(values).view(k, -1)))
        return joined(parts, lambda values: torch.cat(values, 1))

    def given(self, condition: Any, guidance: float = 1.0) -> Self:
        """The same model, conditioned on `condition`. Raises UserError if the kind takes no condition."""
        raise UserError(f"a model of kind {self.spec.kind} takes no condition")

    @abstractmethod
    def _scorer(self, x: Tensor, generator: Noise) -> Callable[[int], Importance]:
        """x (B, C, H, W) -> a function that scores n draws for each image; its result has fields (n * B,)."""

    def log_weights(self, x: Any, k: int = 50, *, generator: Noise = None) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) of k draws z ~ q(z|x), (k, B) nats (Burda et al. 2016).

        `model.given(condition).log_weights(x)` scores p(x|condition), with one condition for all images.
        Raises UserError on images that `as_input` rejects, or if k is below 1.
        """
        if isinstance(x, Tensor):
            require_images(x, self.spec.image_shape)
        require_positive("k", k)
        return self.importance(self.as_input(x), k, generator).log_w

    def score(self, images: Any, *, k: int = 50, seed: int | None = None) -> Tensor:
        """Estimates log p(x) of each image, (B,) nats, by the importance-weighted bound with k draws.

        The estimate is the log of the mean weight (`log_weights`; Burda et al. 2016, eq. 8). Its expectation
        is at most log p(x), and rises with k. `model.given(condition).score(images)` estimates
        log p(x|condition), with one condition for all images. seed: that of the draws. Raises UserError as
        `log_weights` does.
        """
        return self.log_weights(images, k, generator=seeded(self.device, None, seed)).logsumexp(0) - math.log(
            k
        )

    def temperature_of(self, requested: float | None) -> float:
        """The requested temperature of samples, or else the spec's. Raises UserError unless it is above 0.

        A lower temperature than LEAST_TEMPERATURE is raised to it, because logits divided by the lower one
        would overflow. At LEAST_TEMPERATURE a step draws its most likely choice.
        """
        if requested is not None and not requested > 0:
            raise UserError(f"temperature is {requested}; it must be above 0")
        return self.spec.temperature if requested is None else max(requested, LEAST_TEMPERATURE)

    def guidance_of(self, requested: float | None) -> float:
        """The requested guidance of conditioned samples, or else the spec's. `given` checks its range."""
        return self.spec.guidance if requested is None else requested

    @property
    def blank_pixel(self) -> float:
        """The grey that replaces transparent pixels of a picture: 0.0 is black, 1.0 white."""
        return 0.0

    def as_input(self, images: Any) -> Tensor:
        """Images of any type (`core.images.to_batch`) -> x (B, C, H, W) as the encoder takes it.

        If the model binarizes, pictures (uint8, bool, PIL) become 0 or 1 by x > 0.5; floats are not changed.
        Raises UserError on a wrong type, size or range.
        """
        x = to_batch(images, self.spec.image_shape, self.blank_pixel).to(self.device)
        if x.dtype == torch.uint8:
            x = binarized(x, "none" if self.spec.binarize == "none" else "threshold", None)
        return x.to(next(self.parameters()).dtype)

    @abstractmethod
    def objective(self, config: VAEConfig) -> "ModelObjective":
        """The loss that stage `vae` minimises."""

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, C, H, W) -> numbers by name, (B,) each, that `evaluate` reports. Empty by default."""
        return {}

    @abstractmethod
    def features(self, images: Any) -> Tensor:
        """Images of any type -> the encoder's features (B, D). Raises UserError as `as_input` does."""

    @abstractmethod
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        """Decodes `a` with the latents of `b` in the region `inside`; returns mean images (B, C, H, W).

        a, b: images (B, C, H, W) as the encoder takes them. inside: (B, H, W) bool; a place or cell belongs
        to the region if the region contains its centre. A model without places swaps a share of its latents
        that equals the region's share of the image. With a = b the result is the reconstruction. Raises
        UserError if no latent belongs to a region.
        """

    @abstractmethod
    def sample(
        self,
        n: int,
        *,
        generator: Noise = None,
        seed: int | None = None,
        temperature: float | None = None,
        pixels: bool = False,
    ) -> Tensor:
        """Draws z from the prior; returns mean images of p(x|z), or with `pixels` draws of it, (n, C, H, W).

        seed: used in place of a generator. temperature: that of the prior; None means `spec.temperature`.
        """

    @abstractmethod
    def sample_trace(
        self, n: int, *, generator: Noise = None, temperature: float | None = None
    ) -> SampleTrace:
        """Draws n samples; the trace shows the first 8 step by step."""


class ModelObjective(Objective):
    """The objective of stage `vae`, which trains a whole model."""

    model: GenerativeModel
    config: VAEConfig

    def __init__(self, model: GenerativeModel, config: VAEConfig) -> None:
        super().__init__()
        self.model, self.config = model, config


def at_centres(inside: Tensor, centres: Tensor) -> Tensor:
    """The values (B, L) bool of `inside` (B, H, W) at the pixels `centres` (L, 2), clamped to the image."""
    rows, columns = (centres[:, axis].clamp(0, inside.shape[1 + axis] - 1) for axis in (0, 1))
    return inside[:, rows, columns]


def seeded(device: torch.device, generator: Noise, seed: int | None) -> Noise:
    """Returns `generator`, or a new one seeded with `seed`. Raises UserError if both are given."""
    if seed is None:
        return generator
    if generator is not None:
        raise UserError("give a generator or a seed, not both")
    return torch.Generator(device).manual_seed(seed)


def joined(parts: Sequence[Importance], join: Callable[[list[Tensor]], Tensor]) -> Importance:
    """Merges scores by applying `join` to the list of each field's tensors in `parts`."""
    kl = {name: join([part.kl[name] for part in parts]) for name in parts[0].kl}
    return Importance(join([p.log_w for p in parts]), join([p.reconstruction for p in parts]), kl)
