"""NP-DRAW itself: bank, prior, posterior, canvas, decoder and likelihood in one module.

Shapes: B batch, T steps, L places, K parts, C channels, P patch side, h x w canvas, H x W image.
"""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps, render
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.generative import CHUNK, Drawing, Importance, in_chunks, require_images
from npdraw_dist.nn.likelihoods import make_likelihood
from npdraw_dist.nn.posterior import make_posterior
from npdraw_dist.nn.prior import Prior
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import StepLogits, aligned_where, kl_parts, log_prob

CHOICES = ("whether", "where", "what")


def _temperature_of_old(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Models saved before there were temperatures have them at 1."""
    state.setdefault(f"{prefix}temperature", torch.ones(len(CHOICES)))


class NPDraw(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="npdraw_dist",
    license="apache-2.0",
    tags=["image-generation", "np-draw"],
    coders={ModelSpec: (lambda spec: spec.model_dump(mode="json"), ModelSpec.model_validate)},
):
    """The generative model of `spec` (Zeng et al., UAI 2021).

    A new one has an empty bank: `set_bank`, or load weights. Saved and loaded without pickle by
    `save_pretrained` and `from_pretrained`.
    """

    bank_parts: Tensor
    temperature: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.image_shape[0]
        self.register_buffer("bank_parts", torch.zeros(spec.parts, channels, spec.patch, spec.patch))
        # What q's logits of each of CHOICES are divided by; see `nn.calibration`.
        self.register_buffer("temperature", torch.ones(len(CHOICES)))
        self.register_load_state_dict_pre_hook(_temperature_of_old)
        self.prior = Prior(spec)
        self.posterior = make_posterior(spec)
        self.likelihood = make_likelihood(spec.likelihood, channels)
        self.decoder = Decoder(
            self.likelihood.canvas_start(), spec.decoder_width, spec.decoder_depth, spec.downscale
        )

    @property
    def grid(self) -> Grid:
        """The places of the canvas."""
        return self.spec.grid

    @property
    def bank(self) -> PartBank:
        return PartBank(self.bank_parts)

    @property
    def device(self) -> torch.device:
        return self.bank_parts.device

    def set_bank(self, bank: PartBank) -> None:
        """Takes over the parts; raises ValueError where their shape is not the model's."""
        if bank.parts.shape != self.bank_parts.shape:
            raise ValueError(
                f"the model takes a bank {tuple(self.bank_parts.shape)}, not {tuple(bank.parts.shape)}"
            )
        self.bank_parts.copy_(bank.parts)
        self.prior.set_bank(self.bank_parts)
        self.posterior.set_bank(self.bank_parts)

    def infer(self, x: Tensor) -> StepLogits:
        """x (B, C, H, W) -> q(z|x), the posterior's logits at `temperature`."""
        q, (whether, where, what) = self.posterior(x), self.temperature
        places = None if q.where is None else q.where / where
        return StepLogits(q.whether / whether, places, q.what / what)

    @torch.no_grad()
    def encode(self, x: Tensor) -> PartSequence:
        """x (B, C, H, W) in [0, 1] -> the most likely z under q(z|x)."""
        require_images(x, self.spec.image_shape)
        q = self.infer(x)
        whether = q.whether > 0
        where = aligned_where(len(x), self.grid.places, x.device) if q.where is None else q.where.argmax(-1)
        return PartSequence(whether, where.clone(), q.what.argmax(-1))

    def render(self, z: PartSequence, steps: bool = False) -> Tensor:
        """z -> canvas (B, C, h, w) in [0, 1]; with `steps` the canvas after each, (B, T, C, h, w)."""
        if steps:
            return paste_steps(gather_parts(self.bank_parts, z), z.where, self.grid)
        return render(self.bank_parts, z, self.grid)

    @torch.no_grad()
    def decode(self, canvas: Tensor) -> Tensor:
        """canvas (B, C, h, w) -> mean image (B, C, H, W) in [0, 1]."""
        return torch.cat([self.likelihood.mean(self.decoder(part)) for part in canvas.split(CHUNK)])

    @torch.no_grad()
    def draw_pixels(self, canvas: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """canvas (B, C, h, w) -> an image (B, C, H, W) drawn from p(x|z), for Frechet distances."""
        return torch.cat(
            [self.likelihood.sample(self.decoder(part), generator) for part in canvas.split(CHUNK)]
        )

    def sample_prior(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        distinct_places: bool = False,
    ) -> PartSequence:
        """n draws of p(z); see `Prior.sample`."""
        return self.prior.sample(n, generator, temperature, top_k, distinct_places)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """n mean images (n, C, H, W) of p(x|z), z drawn from the prior."""
        return self.decode(self.render(self.sample_prior(n, generator, temperature, top_k)))

    def sample_pixels(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """n images (n, C, H, W) drawn from p(x|z), z drawn from the prior."""
        return self.draw_pixels(self.render(self.sample_prior(n, generator, temperature)), generator)

    @torch.no_grad()
    def draw(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0, animated: int = 8
    ) -> Drawing:
        """n samples; of the first `animated` also the canvas after each step and its image."""
        return self.drawing(self.sample_prior(n, generator, temperature), animated)

    @torch.no_grad()
    def drawing(self, z: PartSequence, animated: int = 8) -> Drawing:
        """What z draws, and how."""
        canvas, few = self.render(z), z[:animated]
        steps = self.render(few, steps=True)
        decoded = self.decode(steps.flatten(0, 1)).view(*steps.shape[:2], *self.spec.image_shape)
        corners = self.grid.corners.to(z.where.device)[few.where]
        sides = torch.full_like(few.where, self.grid.patch)
        codes = {"whether": z.whether, "where": z.where, "what": z.what}
        return Drawing(self.decode(canvas), canvas, steps, decoded, few.whether, corners, sides, codes)

    @torch.no_grad()
    def prior_log_prob(self, z: PartSequence) -> Tensor:
        """log p(z), (B,) nats, teacher-forced, exact."""
        return self.prior.log_prob(z)

    def log_likelihood(self, z: PartSequence, x: Tensor) -> Tensor:
        """log p(x|z), (B,) nats."""
        return self.likelihood.log_prob(self.decoder(self.render(z)), x)

    def sample_posterior(self, q: StepLogits, generator: torch.Generator | None) -> PartSequence:
        """One draw of z ~ q for each image."""
        noise = torch.rand(q.whether.shape, generator=generator, device=q.whether.device)
        if q.where is None:
            where = aligned_where(len(noise), self.grid.places, noise.device)
        else:
            where = categorical_sample(q.where, generator)
        return PartSequence(noise < torch.sigmoid(q.whether), where, categorical_sample(q.what, generator))

    @torch.no_grad()
    def importance(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Importance:
        """k draws z ~ q(z|x) for each image of x (B, C, H, W), with their parts in nats."""
        require_images(x, self.spec.image_shape)
        q = self.infer(x)

        def draw(copies: int) -> Importance:
            shape = (copies, len(x))
            tiled = q.tile(copies)
            z = self.sample_posterior(tiled, generator)
            p = self.prior(z)
            reconstruction = self.log_likelihood(z, x.repeat(copies, 1, 1, 1))
            log_w = reconstruction + log_prob(p, z) - log_prob(tiled, z)
            kl = {name: value.view(shape) for name, value in kl_parts(tiled, p).items()}
            return Importance(log_w.view(shape), reconstruction.view(shape), kl)

        return in_chunks(k, len(x), draw)

    def log_weights(self, x: Tensor, k: int = 50, generator: torch.Generator | None = None) -> Tensor:
        """(k, B) nats: log p(x|z) + log p(z) - log q(z|x) of k draws z ~ q(z|x) (Burda et al. 2016)."""
        return self.importance(x, k, generator).log_w
