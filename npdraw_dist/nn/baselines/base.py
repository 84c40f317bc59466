"""What the baselines share: bounds from single draws, samples, what training minimises.

Shapes: B images, N samples, Z Gaussians, C channels, Q likelihood parameters a pixel, H x W image.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.objective import Objective, ParameterGroup
from npdraw_dist.core.parts import Batch
from npdraw_dist.nn.generative import CHUNK, Drawing, Importance, in_chunks, require_images
from npdraw_dist.nn.likelihoods import make_likelihood
from npdraw_dist.nn.objective import observe

# Each subclass states them again, for the mixin keeps them by class.
HUB: dict[str, Any] = {
    "library_name": "npdraw_dist",
    "license": "apache-2.0",
    "tags": ["image-generation"],
    "coders": {BaselineSpec: (lambda spec: spec.model_dump(mode="json"), BaselineSpec.model_validate)},
}
MAX_LOG_STD = 4.0  # keeps a Gaussian's scale finite where training goes astray


class Baseline(nn.Module, PyTorchModelHubMixin, ABC, **HUB):
    """A VAE of `spec`. Saved and loaded without pickle, as NPDraw is."""

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__()
        self.spec = spec
        self.likelihood = make_likelihood(spec.likelihood, spec.image_shape[0])

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def blank(self) -> Tensor:
        """(Q,): likelihood parameters to start at: of black where images are binary ink, else of grey."""
        start = self.likelihood.canvas_start()
        return start.bias - start.weight.sum(1) if self.spec.likelihood == "bernoulli" else start.bias

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ...): what the encoder makes of x before anything is drawn, if anything."""
        return x.new_empty(len(x), 0)

    @abstractmethod
    def draws(self, x: Tensor, embedded: Tensor, generator: torch.Generator | None) -> Importance:
        """One draw z ~ q(z|x) for each of B images, each field (B,)."""

    def loss_parts(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """log p(x|z) (B,) and the parts of the KL, each (B,): one draw's estimates, with gradients."""
        drawn = self.draws(x, self.embed(x), generator)
        return drawn.reconstruction, drawn.kl

    @abstractmethod
    def generate(
        self, n: int, generator: torch.Generator | None, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """n draws of the prior, its standard deviations times `temperature`.

        Likelihood parameters after each step (T, N, Q, H, W), drawn (N, T), boxes (N, T, 3) of top, left
        and side in pixels, and the codes.
        """

    @torch.no_grad()
    def importance(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Importance:
        """k draws z ~ q(z|x) for each image of x (B, C, H, W), with their parts in nats."""
        require_images(x, self.spec.image_shape)
        embedded = self.embed(x)

        def draw(copies: int) -> Importance:
            tiled = embedded.repeat(copies, *(1 for _ in embedded.shape[1:]))
            drawn = self.draws(x.repeat(copies, 1, 1, 1), tiled, generator)
            shape = (copies, len(x))
            kl = {name: value.view(shape) for name, value in drawn.kl.items()}
            return Importance(drawn.log_w.view(shape), drawn.reconstruction.view(shape), kl)

        return in_chunks(k, len(x), draw)

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, C, H, W) -> what the encoder finds in it, by name, each (B,)."""
        return {}

    def log_weights(self, x: Tensor, k: int = 50, generator: torch.Generator | None = None) -> Tensor:
        """(k, B) nats: log p(x|z) + log p(z) - log q(z|x) of k draws z ~ q(z|x) (Burda et al. 2016)."""
        return self.importance(x, k, generator).log_w

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """n mean images (n, C, H, W) of p(x|z), z from the prior."""
        return torch.cat([self.likelihood.mean(last) for last in self._last(n, generator, temperature)])

    def sample_pixels(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """n images (n, C, H, W) drawn from p(x|z), z from the prior."""
        outputs = self._last(n, generator, temperature)
        return torch.cat([self.likelihood.sample(last, generator) for last in outputs])

    @torch.no_grad()
    def _last(self, n: int, generator: torch.Generator | None, temperature: float) -> list[Tensor]:
        sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
        return [self.generate(size, generator, temperature)[0][-1] for size in sizes]

    @torch.no_grad()
    def draw(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0, animated: int = 8
    ) -> Drawing:
        """n samples, the first `animated` of them step by step."""
        outputs, drawn, boxes, codes = self.generate(n, generator, temperature)
        frames = torch.stack([self.likelihood.mean(output[:animated]) for output in outputs], 1)
        few = boxes[:animated].round().long()
        return Drawing(
            images=self.likelihood.mean(outputs[-1]),
            canvas=None,
            steps=frames,
            decoded=frames,
            drawn=drawn[:animated],
            corners=few[..., :2],
            sides=few[..., 2],
            codes=codes,
        )

    def whole_image(self, n: int) -> Tensor:
        """(N, 1, 3): the box of a step that draws everything."""
        side = float(max(self.spec.image_shape[1:]))
        return torch.tensor([0.0, 0.0, side], device=self.device).expand(n, 1, 3)


class BaselineObjective(Objective):
    """-log p(x|z) + beta KL(q || p) of a baseline."""

    def __init__(self, model: Baseline, config: VAEConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            {"params": list(self.model.parameters()), "lr": self.config.learning_rate, "weight_decay": 0.0}
        ]

    def networks(self) -> list[nn.Module]:
        return [module for module in self.model.children() if isinstance(module, nn.Sequential)]

    def forward(
        self, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss (B,), metrics name -> (B,))."""
        x = observe(batch.images, self.model.spec.binarize, generator)
        reconstruction, parts = self.model.loss_parts(x, generator)
        kl = torch.stack(list(parts.values())).sum(0)
        loss = -reconstruction + self.config.beta * kl
        return loss, {"elbo": reconstruction - kl, "reconstruction": reconstruction, **parts}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """ELBO and its parts of one draw, no training weight in them."""
        x = observe(batch.images, self.model.spec.binarize, generator)
        reconstruction, parts = self.model.loss_parts(x, generator)
        kl = torch.stack(list(parts.values())).sum(0)
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, **parts}


class Gaussian:
    """A diagonal Gaussian of raw network outputs (..., 2 Z): means and log standard deviations."""

    def __init__(self, raw: Tensor) -> None:
        self.mean, log_std = raw.float().chunk(2, -1)
        self.log_std = log_std.clamp(-MAX_LOG_STD, MAX_LOG_STD)

    def sample(self, generator: torch.Generator | None, temperature: float = 1.0) -> Tensor:
        """(..., Z), reparameterised."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + temperature * self.log_std.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """(..., Z) -> (...) nats."""
        scaled = (z - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * scaled.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, p: "Gaussian") -> Tensor:
        """KL(self || p), (...) nats."""
        ratio = torch.exp(2 * (self.log_std - p.log_std))
        shift = ((self.mean - p.mean) * torch.exp(-p.log_std)).square()
        return (0.5 * (ratio + shift - 1) + p.log_std - self.log_std).sum(-1)


def standard_normal(like: Tensor) -> Gaussian:
    """The standard normal with the shape of draws `like` (..., Z)."""
    return Gaussian(torch.zeros(*like.shape[:-1], 2 * like.shape[-1], device=like.device))
