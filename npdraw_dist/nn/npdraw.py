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
from npdraw_dist.nn.generative import (
    CHUNK,
    GenerativeModel,
    Importance,
    SampleTrace,
    in_chunks,
    require_images,
)
from npdraw_dist.nn.networks import make_decoder, make_drawing, make_posterior, make_prior
from npdraw_dist.nn.steps import StepLogits, log_prob

CHOICES = ("whether", "where", "what")  # whose logits have a temperature; *where* seldom has logits
COLDEST = 0.05  # the lowest temperature of q


def _default_temperature(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Models saved before there were temperatures have temperature 1."""
    state.setdefault(f"{prefix}temperature", torch.ones(len(CHOICES)))


class NPDraw(
    GenerativeModel,
    PyTorchModelHubMixin,
    library_name="npdraw_dist",
    license="apache-2.0",
    tags=["image-generation", "np-draw"],
    coders={ModelSpec: (lambda spec: spec.model_dump(mode="json"), ModelSpec.model_validate)},
):
    """The generative model of `spec` (Zeng et al., UAI 2021).

    A new model has an empty bank: call `set_bank`, or load weights. `save_pretrained` and `from_pretrained`
    save and load it without pickle.
    """

    spec: ModelSpec
    bank_parts: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        parts = torch.zeros(spec.parts, spec.image_shape[0], spec.patch, spec.patch)
        self.register_buffer("bank_parts", parts)
        # Divides q's logits of each of CHOICES. Hard draws train it; see also `nn.calibration`.
        self.temperature = nn.Parameter(torch.ones(len(CHOICES)))
        self.register_load_state_dict_pre_hook(_default_temperature)  # type: ignore[no-untyped-call]
        self.prior = make_prior(spec)
        self.posterior = make_posterior(spec)
        self.drawing = make_drawing(spec)
        self.decoder = make_decoder(spec, self.likelihood.canvas_start())

    @property
    def grid(self) -> Grid:
        """The places of the canvas."""
        return self.spec.grid

    @property
    def bank(self) -> PartBank:
        return PartBank(self.bank_parts)

    def set_bank(self, bank: PartBank) -> None:
        """Copies the parts into the model. Raises ValueError if their shape is not the model's."""
        if bank.parts.shape != self.bank_parts.shape:
            raise ValueError(
                f"the model takes a bank {tuple(self.bank_parts.shape)}, not {tuple(bank.parts.shape)}"
            )
        self.bank_parts.copy_(bank.parts)
        self.prior.set_bank(self.bank_parts)
        self.posterior.set_bank(self.bank_parts)

    def infer(self, x: Tensor) -> StepLogits:
        """x (B, C, H, W) -> q(z|x), the posterior's logits of each place or step at `temperature`."""
        q, (whether, where, what) = self.posterior(x).float32(), self.temperature.clamp(min=COLDEST)
        places = None if q.where is None else q.where / where
        return StepLogits(q.whether / whether, places, q.what / what)

    @torch.no_grad()
    def encode(self, x: Tensor) -> PartSequence:
        """x (B, C, H, W) in [0, 1] -> the most likely z under q(z|x): the likeliest places, then parts.

        Raises ValueError on another shape.
        """
        require_images(x, self.spec.image_shape)
        return self.drawing.likeliest(self.infer(x), self.bank_parts)

    def render(self, z: PartSequence, steps: bool = False) -> Tensor:
        """z -> canvas (B, C, h, w) in [0, 1]; with `steps` the canvas after each step, (B, T, C, h, w)."""
        if steps:
            return paste_steps(gather_parts(self.bank_parts, z), z.where, self.grid)
        return render(self.bank_parts, z, self.grid)

    @torch.no_grad()
    def decode(self, canvas: Tensor) -> Tensor:
        """canvas (B, C, h, w) -> mean image (B, C, H, W) in [0, 1]."""
        return torch.cat([self.likelihood.mean(self.decoder(part)) for part in torch.split(canvas, CHUNK)])

    @torch.no_grad()
    def draw_pixels(self, canvas: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """canvas (B, C, h, w) -> an image (B, C, H, W) drawn from p(x|z), for Frechet distances."""
        return torch.cat(
            [self.likelihood.sample(self.decoder(part), generator) for part in torch.split(canvas, CHUNK)]
        )

    def sample_prior(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        distinct_places: bool = False,
    ) -> PartSequence:
        """n sequences z ~ p(z); see `Prior.sample`."""
        return self.prior.sample(n, generator, temperature, top_k, distinct_places)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        return self.decode(self.render(self.sample_prior(n, generator, temperature, top_k)))

    def sample_pixels(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        return self.draw_pixels(self.render(self.sample_prior(n, generator, temperature)), generator)

    def sample_trace(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0, animated: int = 8
    ) -> SampleTrace:
        return self.trace(self.sample_prior(n, generator, temperature), animated)

    @torch.no_grad()
    def trace(self, z: PartSequence, animated: int = 8) -> SampleTrace:
        """The images of z; of the first `animated` also the canvas after each step and its image."""
        canvas, few = self.render(z), z[:animated]
        steps = self.render(few, steps=True)
        decoded = self.decode(steps.flatten(0, 1)).view(*steps.shape[:2], *self.spec.image_shape)
        corners = self.grid.corners.to(z.where.device)[few.where]
        sides = torch.full_like(few.where, self.grid.patch)
        codes = {"whether": z.whether, "where": z.where, "what": z.what}
        return SampleTrace(self.decode(canvas), canvas, steps, decoded, few.whether, corners, sides, codes)

    @torch.no_grad()
    def prior_log_prob(self, z: PartSequence) -> Tensor:
        """log p(z), (B,) nats, teacher-forced, exact."""
        return self.prior.log_prob(z)

    def log_likelihood(self, z: PartSequence, x: Tensor) -> Tensor:
        """log p(x|z), (B,) nats."""
        return self.likelihood.log_prob(self.decoder(self.render(z)), x)

    def sample_posterior(self, q: StepLogits, generator: torch.Generator | None) -> PartSequence:
        """One draw of z ~ q for each image."""
        return self.drawing.sample(q, self.bank_parts, generator)

    @torch.no_grad()
    def importance(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Importance:
        require_images(x, self.spec.image_shape)
        q = self.infer(x)

        def draw(copies: int) -> Importance:
            tiled = q.tile(copies)
            z = self.sample_posterior(tiled, generator)
            p = self.prior(z)
            reconstruction = self.log_likelihood(z, x.repeat(copies, 1, 1, 1))
            terms = self.drawing.terms(tiled, p, z)
            log_w = reconstruction + log_prob(p, z) - terms.log_q.sum(1)
            return Importance(log_w, reconstruction, terms.kl)

        return in_chunks(k, len(x), draw)
