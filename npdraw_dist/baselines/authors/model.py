"""The kind `authors`, NP-DRAW with the networks and the training of the authors' released code.

The constants are those of the authors' MNIST script. Draws of *what* stay relaxed to the end. Decoder and
frozen prior take the same canvases as input, with mixtures of parts. Draws of *where* and *whether* are hard
and get no gradient from the reconstruction; in the authors' code this gradient is 0 in float32. The KL of
*what* and *where* counts only at steps that draw. Teacher forcing replaces *what* and *where* by the parse.
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas, H x W image.
"""

import math

import torch
from torch import Tensor, nn

from npdraw_dist.baselines.authors.network import CanvasPrior, FlatPosterior, PlacedLayout, StridedDecoder
from npdraw_dist.config.networks import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.objective import ParameterGroup, Stepping, ramp
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import paste_steps_at_once
from npdraw_dist.nn.blocks import exactly
from npdraw_dist.nn.hard_draws import Loss
from npdraw_dist.nn.likelihoods import CanvasStart
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import (
    TAU_START,
    TEMPERATURE_RATE,
    PriorObjective,
    VAEObjective,
    decay_groups,
)
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.relaxations import (
    bernoulli_sample,
    categorical_sample,
    gumbel_softmax,
    one_hot_like,
    total_kl,
)
from npdraw_dist.nn.steps import StepLogits, kl_steps
from npdraw_dist.system.errors import UserError

STEPPING = Stepping(beta2=0.999, clip=math.inf, warmup=0.0, falls=False)
DECODER_RATE = 1e-4  # Adam's learning rate for the decoder; vae.learning_rate is that of the posterior
# Shares of the budget; in the authors' code, 50 and 20 of 661 epochs.
TAU_FALL = 0.0756430  # share over which the temperature tau falls exponentially to vae.tau_end
TEACHER_FALL = 0.0302572  # share over which the chance of teacher forcing falls from 1 to 1 / e


def gumbel_temperature(config: VAEConfig, done: float) -> float:
    """The temperature of the Gumbel-softmax draws of *what* after the share `done` of the budget."""
    return TAU_START * math.exp(math.log(config.tau_end / TAU_START) * ramp(done, 0.0, 1.0, TAU_FALL))


def teacher_chance(done: float) -> float:
    """The chance of teacher forcing of an image, whose *what* and *where* then come from the parse, not q."""
    return math.exp(-((done / TEACHER_FALL) ** 2))


class AuthorsPriorObjective(PriorObjective):
    """`PriorObjective` with the authors' settings of Adam."""

    stepping = STEPPING
    weight_decay = 0.0


class AuthorsObjective(VAEObjective):
    """`VAEObjective` with the authors' surrogate, which is no bound, and their settings of Adam."""

    stepping = STEPPING

    def __init__(self, model: NPDraw, config: VAEConfig) -> None:
        super().__init__(model, config)
        self.relaxed_share = 1.0
        model.prior.requires_grad_(False)

    def parameter_groups(self) -> list[ParameterGroup]:
        model, decay = self.model, self.config.weight_decay
        return [
            *decay_groups(model.posterior.named_parameters(), self.config.learning_rate, decay),
            {"params": [model.temperature], "lr": TEMPERATURE_RATE, "weight_decay": 0.0, "matrices": False},
            *decay_groups(model.decoder.named_parameters(), DECODER_RATE, decay),
        ]

    def _relaxed(
        self,
        x: Tensor,
        q: StepLogits,
        parse: PartSequence,
        done: float,
        generator: Noise,
        condition: Tensor | None = None,
    ) -> Loss:
        model = self.model
        assert isinstance(model.prior, CanvasPrior)
        what, gate, where = self._choices(q, parse, done, generator)
        shown = what.detach().sum(-1) > 0.5  # false at a forced step where the parse draws no part
        z = PartSequence((gate > 0.5) & shown, where, what.argmax(-1))
        canvases = soft_canvases(model.bank_parts, what * gate[..., None], where, model.grid)
        found = model.reconstruct_from(canvases[:, -1], x, generator)
        p = model.prior.given(canvases, z).float32()
        parts = {name: value.sum(1) for name, value in kl_steps(q, p, gate).items()}
        kl = total_kl(parts)
        metrics = {"surrogate": found.log_p - kl, "reconstruction": found.log_p, **parts}
        return self.config.beta * kl - found.log_p, metrics

    def _choices(
        self, q: StepLogits, parse: PartSequence, done: float, generator: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """*What* as weights (B, T, K), *whether* and *where* (B, T), from q or, if forced, from the parse."""
        assert q.where is not None
        what = gumbel_softmax(q.what, gumbel_temperature(self.config, done), generator)
        gate = bernoulli_sample(q.whether, generator)
        where = categorical_sample(q.where, generator)
        forced = uniform((len(gate),), generator, gate) < teacher_chance(done)
        given = one_hot_like(what, parse.what) * parse.whether[..., None]
        what = torch.where(forced[:, None, None], given, what)
        return what, gate, torch.where(forced[:, None], parse.where, where)


def soft_canvases(bank: Tensor, what: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """The canvas after each step, (B, T, C, h, w), differentiable in what (B, T, K) >= 0. where: (B, T).

    The gradient of a pixel goes to the step that is visible there.
    """
    with exactly(what):  # in float32, since the decoder sees the canvas
        parts = (what @ grid.ink(bank).flatten(1)).unflatten(2, bank.shape[1:])
    return grid.ink(paste_steps_at_once(parts, where, grid.of_ink))


class AuthorsNPDraw(NPDraw):
    """`NPDraw` with the authors' networks and objectives."""

    title = "NP-DRAW by its authors"

    @classmethod
    def make_prior(cls, spec: ModelSpec) -> StepPrior:
        return CanvasPrior(spec)

    @classmethod
    def make_posterior(cls, spec: ModelSpec) -> FlatPosterior:
        return FlatPosterior(spec)

    @classmethod
    def make_layout(cls, spec: ModelSpec) -> PlacedLayout:
        return PlacedLayout()

    @classmethod
    def make_decoder(cls, spec: ModelSpec, start: CanvasStart) -> nn.Module:
        outputs, channels = start.weight.shape
        sizes = (spec.decoder_width, spec.decoder_depth, spec.downscale)
        return StridedDecoder(channels, outputs, *sizes, spec.grid.background)

    @classmethod
    def prior_objective(cls, prior: StepPrior, learning_rate: float) -> AuthorsPriorObjective:
        return AuthorsPriorObjective(prior, learning_rate)

    def objective(self, config: VAEConfig) -> AuthorsObjective:
        return AuthorsObjective(self, config)

    def with_bank(self, bank: PartBank) -> NPDraw:
        """Raises UserError, since these networks have free weights for their parts."""
        raise UserError(
            "the model has free weights for its parts (the authors' model); train one with "
            "--prior.table pixels"
        )
