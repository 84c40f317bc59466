"""The `nn.Module` that combines bank, prior, posterior, decoder and likelihood of NP-DRAW.

Shapes: B batch, T steps, L places, K parts, C channels, P patch side, h x w canvas, H x W image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.images import require_images
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.orders import ORDERS, Free
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps, render
from npdraw_dist.core.vocabulary import Condition, Vocabulary, plain
from npdraw_dist.nn import editing
from npdraw_dist.nn.animation import ANIMATED, GROWING_FRAMES
from npdraw_dist.nn.appearance import Inferred, make_appearance
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.generative import Importance, SampleTrace, seeded
from npdraw_dist.nn.hub import HubModel
from npdraw_dist.nn.likelihoods import CanvasStart
from npdraw_dist.nn.posterior import Posterior, StepPosterior
from npdraw_dist.nn.prior import GivenPrior, Prior, StepPrior
from npdraw_dist.nn.steps import AlignedLayout, FreeLayout, StepLogits, log_prob
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.model_files import CONFIG, first_fact

CHOICES = ("whether", "where", "what")  # q has a temperature for each; *where* uses it only in kind `authors`
ALIGNED_FRAMES = 16  # largest number of GIF frames in order aligned, where more would take too long to watch
COLDEST = 0.05  # the lowest temperature of q


@dataclass(frozen=True)
class Reconstruction:
    """Scores of one draw of the latent u (`nn.appearance`) for each image, (B,) nats.

    log_p: log p(x|z, u). kl: KL(q || p) of u by name; empty without u. log_ratio: log q(u) - log p(u).
    """

    log_p: Tensor
    kl: dict[str, Tensor]
    log_ratio: Tensor


class Networks(HubModel):
    """The networks that `spec` describes (Zeng et al., UAI 2021). Before `set_bank` all parts are blank.

    encoder: replaces the network that reads the image for q(z|x); it maps ink (B, C, H, W), the distance of
    the pixels to the background, to features (B, spec.encoder_width, rows, columns) of the grid's places.
    decoder: replaces the network of p(x|z); it maps the canvas (B, C, h, w) to likelihood parameters
    (B, Q, H, W), such as Bernoulli logits (Q = C). Raises UserError if either gives another shape.
    """

    spec: ModelSpec
    bank_parts: Tensor

    def __init__(
        self, spec: ModelSpec, *, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> None:
        super().__init__(spec)
        parts = torch.full((spec.parts, spec.image_shape[0], spec.patch, spec.patch), spec.grid.background)
        self.register_buffer("bank_parts", parts)
        # Divides q's logits, one number per choice. Hard draws train it; then `fit_temperature` sets it.
        self.temperature = nn.Parameter(torch.ones(len(CHOICES)))
        self.prior = self.make_prior(spec)
        self.posterior = self.make_posterior(spec)
        self.layout = self.make_layout(spec)
        self.decoder = self.make_decoder(spec, self.likelihood.canvas_start())
        self.appearance = make_appearance(spec)
        given = {"encoder": encoder, "decoder": decoder}
        self.own_names = [name for name, network in given.items() if network is not None]
        self._take(encoder, decoder)

    def _take(self, encoder: nn.Module | None, decoder: nn.Module | None) -> None:
        """Puts a user's networks in place of the model's own."""
        spec, (height, width) = self.spec, self.spec.image_shape[1:]
        if self.own_names and spec.authors:
            raise UserError("a model of kind authors takes no other encoder or decoder; use kind npdraw")
        if encoder is not None:
            features = (spec.encoder_width, self.grid.rows, self.grid.columns)
            self.posterior.trunk = require_shapes("encoder", encoder, spec.image_shape, features)
        if decoder is not None:
            if self.appearance is not None:
                raise UserError(
                    f"a decoder of your own takes the canvas alone; set latents to 0, not {spec.latents}"
                )
            canvas = (spec.image_shape[0], self.grid.height, self.grid.width)
            output = (self.likelihood.parameters_per_pixel, height, width)
            self.decoder = require_shapes("decoder", decoder, canvas, output)

    def untrained(self, spec: ModelSpec) -> Self:
        """A new model of `spec`, with copies of the user's networks if this model has them."""
        networks = {"encoder": getattr(self.posterior, "trunk", None), "decoder": self.decoder}
        return type(self)(spec, **{name: deepcopy(networks[name]) for name in self.own_names})

    def save_pretrained(self, *args: Any, **named: Any) -> str | None:
        """See `HubModel.save_pretrained`. Raises UserError if the model has networks of the user's."""
        if self.own_names:
            raise UserError(
                f"{CONFIG} cannot describe your own {' and '.join(self.own_names)}; save model.state_dict(), "
                "and load it into a model that is given the same modules"
            )
        return super().save_pretrained(*args, **named)

    # A subclass with other networks overrides the following `make_` methods.

    @classmethod
    def make_prior(cls, spec: ModelSpec) -> StepPrior:
        return Prior(spec)

    @classmethod
    def make_posterior(cls, spec: ModelSpec) -> StepPosterior:
        return Posterior(spec)

    @classmethod
    def make_layout(cls, spec: ModelSpec) -> AlignedLayout | FreeLayout:
        order = ORDERS[spec.order]
        if isinstance(order, Free):
            return FreeLayout(order, spec.grid, spec.steps)
        return AlignedLayout()

    @classmethod
    def make_decoder(cls, spec: ModelSpec, start: CanvasStart) -> nn.Module:
        """start: the map from canvas to likelihood parameters before training (`Likelihood.canvas_start`)."""
        sizes, background = (spec.decoder_width, spec.decoder_depth, spec.downscale), spec.grid.background
        return Decoder(start, *sizes, background, spec.dropout)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the prior's conditions."""
        return Vocabulary.of(self.spec.prior)

    @property
    def plain_prior(self) -> StepPrior:
        """The prior without the condition that `given` fixed, if there is one."""
        return self.prior.of if isinstance(self.prior, GivenPrior) else self.prior

    def given(self, condition: Condition | Sequence[Condition] | Tensor, guidance: float = 1.0) -> Self:
        """A view of this model with the same weights, and with p(z|condition) in place of p(z).

        condition: a class by number or name, or words; one for all drawings or a sequence with one for each;
        or a tensor of tokens (B, A). The condition replaces an earlier one. guidance: see
        `nn.prior.GivenPrior`; with 1, the view scores by the trained p(z|condition). The view cannot be
        saved; save the original model. Raises UserError on a condition that the model does not know.
        """
        self.vocabulary.require()
        if not 0 <= guidance < math.inf:
            raise UserError(f"guidance is {guidance}; it must be 0 or more")
        if not (isinstance(condition, Tensor) and condition.ndim == 2):
            each = plain(condition)
            condition = self.vocabulary.rows(each if isinstance(each, list) else [each])
        view, prior = copy(self), GivenPrior(self.plain_prior, condition.to(self.device), guidance)
        view._modules = {**self._modules, "prior": prior}
        return view

    @property
    def conditions(self) -> int:
        """The number of conditions on which the model is conditioned; 1 if it is not conditioned."""
        return len(self.prior.condition) if isinstance(self.prior, GivenPrior) else 1

    def require_conditions(self, n: int) -> None:
        """Raises UserError unless the model has one condition for all n drawings, or n conditions."""
        if self.conditions not in (1, n):
            raise UserError(f"the model is given {self.conditions} conditions, for {n} drawings")

    @property
    def grid(self) -> Grid:
        return self.spec.grid

    @property
    def blank_pixel(self) -> float:
        return self.grid.background

    @property
    def bank(self) -> PartBank:
        """The parts that the model draws with."""
        return PartBank(self.bank_parts)

    def set_bank(self, bank: PartBank) -> None:
        """Copies the parts into the model. Raises ValueError if their shape differs from the model's."""
        if bank.parts.shape != self.bank_parts.shape:
            raise ValueError(
                f"the model takes a bank {tuple(self.bank_parts.shape)}, not {tuple(bank.parts.shape)}"
            )
        self.bank_parts.copy_(bank.parts)
        self.prior.set_bank(self.bank_parts)
        self.posterior.set_bank(self.bank_parts)

    def infer(self, x: Tensor) -> StepLogits:
        """x (B, C, H, W) -> q(z|x), the posterior's logits of each place or step divided by `temperature`."""
        q, (whether, where, what) = self.posterior(x).float32(), self.temperature.clamp(min=COLDEST)
        places = None if q.where is None else q.where / where
        return StepLogits(q.whether / whether, places, q.what / what)

    @torch.no_grad()
    def encode(self, x: Any) -> PartSequence:
        """Images of any type -> their most likely z (B, T). Raises UserError as `as_input` does."""
        if isinstance(x, Tensor):
            require_images(x, self.spec.image_shape)
        x = self.as_input(x)
        parts = x.split(self.rows_at_once)
        return PartSequence.cat([self.layout.likeliest(self.infer(part), self.bank_parts) for part in parts])

    def render(self, z: PartSequence, *, steps: bool = False) -> Tensor:
        """z -> canvas (B, C, h, w) in [0, 1]; with `steps` the canvas after each step, (B, T, C, h, w)."""
        z = z.canonical().to(self.device)
        if steps:
            return paste_steps(gather_parts(self.bank_parts, z, self.grid), z.where, self.grid)
        return render(self.bank_parts, z, self.grid)

    def likelihood_of(self, canvas: Tensor, u: Tensor | None = None) -> Tensor:
        """Parameters of p(x|canvas, u), (B, Q, H, W). u: None stands for the mean of p(u|canvas)."""
        if self.appearance is None:
            return self.decoder(canvas)
        if u is None:
            u = self.appearance.prior(canvas).mean
        return self.decoder(canvas, self.appearance.features(u))

    @torch.no_grad()
    def decode(self, canvas: Tensor, u: Tensor | None = None) -> Tensor:
        """canvas (B, C, h, w) -> mean image (B, C, H, W) in [0, 1]; u as in `likelihood_of`."""
        if len(canvas) == 0:  # the decoder would fail, as pixel_unshuffle does not reshape an empty batch
            return canvas.new_zeros(0, *self.spec.image_shape)
        return torch.cat([self.likelihood.mean(params) for params in self._in_chunks(canvas, u)])

    @torch.no_grad()
    def _draw_pixels(self, canvas: Tensor, u: Tensor | None, generator: Noise) -> Tensor:
        """canvas (B, C, h, w) -> an image (B, C, H, W) drawn from p(x|canvas, u); u as in `likelihood_of`."""
        drawn = [self.likelihood.sample(params, generator) for params in self._in_chunks(canvas, u)]
        return torch.cat(drawn)

    def _in_chunks(self, canvas: Tensor, u: Tensor | None) -> Iterator[Tensor]:
        parts = canvas.split(self.rows_at_once)
        of_parts = [None] * len(parts) if u is None else u.split(self.rows_at_once)
        for part, latents in zip(parts, of_parts, strict=True):
            yield self.likelihood_of(part, latents)

    @torch.no_grad()
    def trace(self, z: PartSequence, u: Tensor | None = None) -> SampleTrace:
        """Decodes z and u, and for the first 8 drawings also the canvas after each step."""
        canvas, few = self.render(z), z[:ANIMATED]
        steps = self.render(few, steps=True)
        each = None if u is None else u[:ANIMATED].repeat_interleave(steps.shape[1], 0)
        decoded = self.decode(steps.flatten(0, 1), each).view(*steps.shape[:2], *self.spec.image_shape)
        corners = self.grid.corners.to(z.where.device)[few.where]
        sides = torch.full_like(few.where, self.grid.patch)
        codes = {"whether": z.whether, "where": z.where, "what": z.what}
        if u is not None:
            codes["appearance"] = u
        made = (self.decode(canvas, u), canvas, steps, decoded, few.whether, corners, sides, codes)
        return SampleTrace(*made, ALIGNED_FRAMES if self.spec.aligned else GROWING_FRAMES)

    @torch.no_grad()
    def mean_appearance(self, canvas: Tensor) -> Tensor | None:
        """The mean of p(u|canvas), (B, ...); None if the model has no u."""
        return None if self.appearance is None else self.appearance.prior(canvas).mean

    def infer_appearance(self, x: Tensor, canvas: Tensor) -> Inferred | None:
        """q(u|x, canvas) and p(u|canvas) for images and their canvases; None if the model has no u."""
        return None if self.appearance is None else self.appearance.infer(x, canvas)

    def sample_prior(
        self,
        n: int,
        *,
        generator: Noise = None,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        distinct_places: bool = False,
    ) -> PartSequence:
        """Draws n sequences z ~ p(z); see `StepPrior.sample`. seed: used in place of a generator."""
        self.require_conditions(n)
        generator = seeded(self.device, generator, seed)
        return self.prior.sample(n, generator, self.temperature_of(temperature), top_k, distinct_places)

    @torch.no_grad()
    def prior_log_prob(self, z: PartSequence) -> Tensor:
        """Exact log p(z), (B,) nats, by teacher forcing. Raises ValueError on drawings of another model."""
        self.require_conditions(len(z))
        return self.prior.log_prob(self.checked(z).to(self.device))

    def checked(self, z: PartSequence) -> PartSequence:
        """Clears steps without a part (`editing.checked`). Raises ValueError if the model cannot draw z."""
        spec = self.spec
        return editing.checked(z, spec.steps, spec.grid.places, spec.parts, spec.where_given)

    @torch.no_grad()
    def features(self, images: Any) -> Tensor:
        """Images of any type -> features of the posterior, flattened to (B, D)."""
        return self.posterior.features(self.as_input(images)).flatten(1)

    def reconstruct_from(self, canvas: Tensor, x: Tensor, generator: Noise) -> Reconstruction:
        """Scores x (B, C, H, W) given canvas (B, C, h, w) and one draw u ~ q(u|x, canvas)."""
        found = self.infer_appearance(x, canvas)
        u = None if found is None else found.q.sample(generator)
        log_p = self.likelihood.log_prob(self.likelihood_of(canvas, u), x)
        if found is None or u is None:
            return Reconstruction(log_p, {}, torch.zeros_like(log_p))
        return Reconstruction(log_p, {"kl_appearance": found.kl()}, found.log_ratio(u))

    def sample_posterior(self, q: StepLogits, generator: Noise) -> PartSequence:
        """Draws one z ~ q for each image."""
        return self.layout.sample(q, self.bank_parts, generator)

    def _scorer(self, x: Tensor, generator: Noise) -> Callable[[int], Importance]:
        q = self.infer(x)

        def draw(copies: int) -> Importance:
            tiled = q.tile(copies)
            z = self.sample_posterior(tiled, generator)
            p = self.prior(z)
            found = self.reconstruct_from(self.render(z), x.repeat(copies, 1, 1, 1), generator)
            terms = self.layout.terms(tiled, p, z)
            log_w = found.log_p - found.log_ratio + log_prob(p, z) - terms.log_q.sum(1)
            return Importance(log_w, found.log_p, {**terms.kl, **found.kl})

        return draw


@torch.no_grad()
def require_shapes(
    name: str, network: nn.Module, takes: tuple[int, ...], gives: tuple[int, ...]
) -> nn.Module:
    """Returns the user's network if it maps (B, *takes) to (B, *gives); raises UserError if not."""
    zeros, training = torch.zeros(2, *takes), network.training
    try:
        found = network.eval()(zeros)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"the {name} fails on an input of shape {tuple(zeros.shape)}: {first_fact(error)}"
        ) from None
    finally:
        network.train(training)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (2, *gives):
        raise UserError(f"the {name} maps {tuple(zeros.shape)} to {shape}; it must give {(2, *gives)}")
    return network
