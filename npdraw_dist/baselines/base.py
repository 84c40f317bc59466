"""The base class of the baselines, which implements bounds, samples and the training objective.

Shapes: B images, N samples, T steps, C channels, Q likelihood parameters per pixel, H x W image.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.baselines.contract import Kind
from npdraw_dist.baselines.latents import PriorDraws
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.objective import Gather, ParameterGroup, ramp
from npdraw_dist.core.parts import Batch
from npdraw_dist.nn.animation import ANIMATED
from npdraw_dist.nn.generative import Importance, ModelObjective, SampleTrace, seeded
from npdraw_dist.nn.hard_draws import Loss
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.objective import PRIOR_DECAY, decay_groups
from npdraw_dist.nn.relaxations import total_kl
from npdraw_dist.system.errors import UserError, require_positive


class Baseline(Kind):
    """Implements scores, samples and training by the methods that `baselines.contract.Kind` declares."""

    def blank(self) -> Tensor:
        """Likelihood parameters (Q,) of a pixel before training, black for a Bernoulli, grey otherwise."""
        start = self.likelihood.canvas_start()
        return start.bias - start.weight.sum(1) if self.spec.likelihood == "bernoulli" else start.bias

    def objective(self, config: VAEConfig) -> "BaselineObjective":
        return BaselineObjective(self, config)

    def loss_parts(self, x: Tensor, generator: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Estimates log p(x|z) (B,) and the terms of the KL, each (B,), from one draw, with gradients."""
        drawn = self.draws(x, self.embed(x), generator)
        return drawn.reconstruction, drawn.kl

    def training_loss(self, x: Tensor, config: VAEConfig, progress: float, generator: Noise) -> Loss:
        """The loss (B,) of images x (B, C, H, W), and metrics (B,) by name (`Objective.forward`)."""
        reconstruction, parts = self.loss_parts(x, generator)
        weight = kl_weight(config, progress)
        return weight * total_kl(parts) - reconstruction, bound_of(reconstruction, parts)

    def may_end(self, config: VAEConfig, progress: float) -> bool:
        """Whether training may end early (`Objective.may_end`)."""
        return True

    def after_step(self, gather: Gather) -> None:
        """Changes weights after an optimizer step (`Objective.after_step`). By default, nothing changes."""

    def _scorer(self, x: Tensor, generator: Noise) -> Callable[[int], Importance]:
        embedded = self.embed(x)

        def draw(copies: int) -> Importance:
            tiled = embedded.repeat(copies, *(1 for _ in embedded.shape[1:]))
            return self.draws(x.repeat(copies, 1, 1, 1), tiled, generator)

        return draw

    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        raise UserError(f"a model of kind {self.spec.kind} has no latents for single regions to swap")

    @torch.no_grad()
    def features(self, images: Any) -> Tensor:
        embedded = self.embed(self.as_input(images)).flatten(1)
        if not embedded.shape[1]:
            raise UserError(
                f"a model of kind {self.spec.kind} reads an image step by step and has no features"
            )
        return embedded

    def sample(
        self,
        n: int,
        *,
        generator: Noise = None,
        seed: int | None = None,
        temperature: float | None = None,
        pixels: bool = False,
    ) -> Tensor:
        generator = seeded(self.device, generator, seed)
        outputs = self._outputs(n, generator, temperature)
        if pixels:
            return torch.cat([self.likelihood.sample(last, generator) for last in outputs])
        return torch.cat([self.likelihood.mean(last) for last in outputs])

    @torch.no_grad()
    def _outputs(self, n: int, generator: Noise, temperature: float | None) -> list[Tensor]:
        """Likelihood parameters of n samples, after the last step, in chunks. Raises UserError if n < 1."""
        require_positive("n", n)
        most = self.rows_at_once
        sizes = [min(most, n - start) for start in range(0, n, most)]
        heat = self.temperature_of(temperature)
        # Without the clone, a view would keep the outputs of all steps in memory.
        return [self.generate(size, generator, heat).outputs[-1].clone() for size in sizes]

    @torch.no_grad()
    def sample_trace(
        self, n: int, *, generator: Noise = None, temperature: float | None = None
    ) -> SampleTrace:
        draws = self.generate(n, generator, self.temperature_of(temperature))
        frames = torch.stack([self.likelihood.mean(output[:ANIMATED]) for output in draws.outputs], 1)
        boxes = draws.boxes[:ANIMATED].round().long()
        return SampleTrace(
            images=self.likelihood.mean(draws.outputs[-1]),
            canvas=None,
            steps=frames,
            decoded=frames,
            drawn=draws.drawn[:ANIMATED],
            corners=boxes[..., :2],
            sides=boxes[..., 2],
            codes=draws.codes,
        )

    def one_step(self, output: Tensor, codes: Mapping[str, Tensor]) -> PriorDraws:
        """`PriorDraws` with one step, which draws the whole image. output: (N, Q, H, W)."""
        side = float(max(self.spec.image_shape[1:]))
        whole = torch.tensor([0.0, 0.0, side], device=output.device).expand(len(output), 1, 3)
        drawn = torch.ones(len(output), 1, dtype=torch.bool, device=output.device)
        return PriorDraws(output[None], drawn, whole, codes)


class BaselineObjective(ModelObjective):
    """-log p(x|z) + beta KL(q || p). The weight of the KL rises from 0 to beta over `vae.latent_ramp`."""

    model: Baseline

    def parameter_groups(self) -> list[ParameterGroup]:
        named = list(self.model.named_parameters())
        prior = [(n, p) for n, p in named if n.startswith("prior.")]
        rest = [(n, p) for n, p in named if not n.startswith("prior.")]
        return [
            *decay_groups(rest, self.config.learning_rate, self.config.weight_decay),
            *decay_groups(prior, self.config.prior_learning_rate, PRIOR_DECAY),
        ]

    def after_step(self, gather: Gather) -> None:
        self.model.after_step(gather)

    def may_end(self, progress: float) -> bool:
        return self.model.may_end(self.config, progress)

    def forward(self, batch: Batch, progress: float, generator: Noise) -> Loss:
        x = binarized(batch.images, self.model.spec.binarize, generator)
        return self.model.training_loss(x, self.config, progress, generator)

    def evaluate(self, batch: Batch, generator: Noise) -> dict[str, Tensor]:
        """The ELBO and its terms, estimated from one draw, each (B,)."""
        x = binarized(batch.images, self.model.spec.binarize, generator)
        return bound_of(*self.model.loss_parts(x, generator))


def bound_of(reconstruction: Tensor, kl: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """log p(x|z) and the terms of the KL, each (B,) -> the ELBO and all terms by name."""
    return {"elbo": reconstruction - total_kl(kl), "reconstruction": reconstruction, **kl}


def kl_weight(config: VAEConfig, progress: float) -> float:
    """The weight of the KL in the loss, which rises to beta over the share `latent_ramp` of the budget."""
    return config.beta * ramp(progress, 0.0, 1.0, config.latent_ramp)
