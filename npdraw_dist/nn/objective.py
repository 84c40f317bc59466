"""The losses of the two training stages, in nats per image (paper section 3.3).

Shapes: B batch, T steps, L places, K parts, C channels, H x W image.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from npdraw_dist.config.networks import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.objective import Gather, Objective, ParameterGroup, ramp
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.generative import ModelObjective
from npdraw_dist.nn.hard_draws import Loss, hard_loss
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.networks import CHOICES, COLDEST, Networks
from npdraw_dist.nn.prior import StepPrior, dropped
from npdraw_dist.nn.relaxations import binary_concrete, gumbel_softmax, soft_canvas, total_kl
from npdraw_dist.nn.steps import StepLogits

# Parameters whose names contain one of these strings are tables, which AdamW trains without weight decay,
# whatever their shape. They include the matrices of a `PixelTable`, because Muon did not improve these
# matrices and took a tenth more time.
TABLES = (
    *("drawn", "part", "place", "position", "blank", "told"),
    *("codebook", "pseudo_inputs", "first_", "background"),
)
PRIOR_DECAY = 0.01  # AdamW's weight decay for the matrices of a prior over parts or codes
# Temperature search: factor of a step, most steps in one direction (1.5^6 = 11), images per batch.
RATIO, TRIES, BATCH = 1.5, 6, 64
TAU_START = 1.0  # temperature of Gumbel-softmax draws at the start of training
TEMPERATURE_RATE = 0.02  # peak of Adam's learning rate for the temperatures of q


class PriorObjective(Objective):
    """-log p(z) of the parses, which trains the prior by maximum likelihood."""

    weight_decay: ClassVar[float] = PRIOR_DECAY

    def __init__(self, prior: StepPrior, learning_rate: float) -> None:
        super().__init__()
        self.prior, self.learning_rate = prior, learning_rate

    def parameter_groups(self) -> list[ParameterGroup]:
        return decay_groups(self.prior.named_parameters(), self.learning_rate, self.weight_decay)

    def forward(self, batch: Batch, progress: float, generator: Noise) -> Loss:
        nll = -self.prior.log_prob(batch.z, training_conditions(self.prior.spec, batch, generator))
        return nll, {"nll": nll}

    def evaluate(self, batch: Batch, generator: Noise) -> dict[str, Tensor]:
        """-log p(z) of the parses, in nats."""
        return {"nll": -self.prior.log_prob(batch.z, conditions_of(self.prior.spec, batch))}


class VAEObjective(ModelObjective):
    """-log p(x|z) + beta KL(q || p) - lambda log q(parse|x), a cross-entropy (paper eq. 6)."""

    model: Networks

    def __init__(self, model: Networks, config: VAEConfig) -> None:
        super().__init__(model, config)
        self.relaxed_share = config.relaxed_share

    def parameter_groups(self) -> list[ParameterGroup]:
        named = dict(self.model.named_parameters())
        temperature = named.pop("temperature")
        rest = {n: p for n, p in named.items() if not n.startswith("prior.")}
        prior, config, until = self.model.prior.named_parameters(), self.config, list[ParameterGroup]()
        if config.draws == 1:  # a single hard draw per image does not train q(z|x)
            q = {n: rest.pop(n) for n in list(rest) if n.startswith("posterior.")}
            until = decay_groups(q.items(), config.learning_rate, config.weight_decay)
            for group in until:
                group["until"] = self.relaxed_share
        return [
            *decay_groups(rest.items(), config.learning_rate, config.weight_decay),
            *until,
            # The rate is high, since the best temperatures change a lot when training switches to hard draws.
            {"params": [temperature], "lr": TEMPERATURE_RATE, "weight_decay": 0.0, "matrices": False},
            *decay_groups(prior, config.prior_learning_rate, PRIOR_DECAY),
        ]

    @torch.no_grad()
    def after_step(self, gather: Gather) -> None:
        self.model.temperature.clamp_(min=COLDEST)  # a lower one would get no gradient, as `infer` clamps it

    def forward(self, batch: Batch, progress: float, generator: Noise) -> Loss:
        config, model, parse = self.config, self.model, batch.z
        x = binarized(batch.images, model.spec.binarize, generator)
        latent = ramp(progress, 0.0, 1.0, config.latent_ramp)
        condition = training_conditions(model.spec, batch, generator)
        if self.is_hard(progress):  # then the loss does not contain the parse
            with torch.set_grad_enabled(torch.is_grad_enabled() and config.draws > 1):
                q = model.infer(x)
            loss, metrics = hard_loss(model, x, q, config.draws, generator, condition, config.beta, latent)
            if config.draws == 1:  # DDP waits for a gradient of each parameter, so q(z|x) gets zeros
                untrained = [model.temperature, *model.posterior.parameters()]
                loss = loss + 0.0 * torch.stack([p.sum() for p in untrained]).sum()
            return loss, metrics
        done = progress / self.relaxed_share
        # Relaxed draws favour a q that is too certain. They would lower `temperature`, so they do not use it.
        q = model.posterior(x).float32()
        loss, metrics = self._relaxed(x, q, parse, done, generator, condition)
        if latent < 1 and "kl_appearance" in metrics:
            loss = loss - config.beta * (1 - latent) * metrics["kl_appearance"]
        loss = loss + 0.0 * model.temperature.sum()  # DDP waits for a gradient of each parameter
        cross_entropy = -model.layout.log_prob(q, parse)
        weight = ramp(done, config.parse_weight, config.parse_weight_end, 1.0)
        return loss + weight * cross_entropy, {**metrics, "parse_cross_entropy": cross_entropy}

    def may_end(self, progress: float) -> bool:
        """False while draws are relaxed, because the bound on validation images may then fall temporarily."""
        return self.is_hard(progress)

    def is_hard(self, progress: float) -> bool:
        """Whether draws of z are hard after the share `progress` of the budget."""
        return progress >= self.relaxed_share

    def _relaxed(
        self,
        x: Tensor,
        q: StepLogits,
        parse: PartSequence,
        done: float,
        generator: Noise,
        condition: Tensor | None = None,
    ) -> Loss:
        """The paper's surrogate loss. It is no bound, since relaxed draws mix parts and draw them partly."""
        model = self.model
        canvas, z = self._draw(q, done, generator)
        found = model.reconstruct_from(canvas, x, generator)
        parts = {**model.layout.surrogate_kl(q, model.prior(z, condition).float32(), z), **found.kl}
        kl = total_kl(parts)
        metrics = {"surrogate": found.log_p - kl, "reconstruction": found.log_p, **parts}
        return self.config.beta * kl - found.log_p, metrics

    def _draw(self, q: StepLogits, done: float, generator: Noise) -> tuple[Tensor, PartSequence]:
        """Makes a relaxed draw of q. Returns its canvas, with gradients, and a hard z for the prior."""
        tau = ramp(done, TAU_START, self.config.tau_end, 1.0)
        what, gate = gumbel_softmax(q.what, tau, generator), binary_concrete(q.whether, tau, generator)
        bank, steps = self.model.bank_parts, self.model.spec.steps
        if steps < gate.shape[1]:
            gate = gate * most_open(gate.detach(), steps)
        z = self.model.layout.arranged(gate.detach() > 0.5, what.argmax(-1), bank)
        return self.canvas(what, gate), z

    def canvas(self, what: Tensor, gate: Tensor) -> Tensor:
        """The canvas (B, C, h, w) of a relaxed draw. The benchmark overrides this method (`bench.dense`)."""
        return soft_canvas(self.model.bank_parts, what, gate, self.model.grid)

    def evaluate(self, batch: Batch, generator: Noise) -> dict[str, Tensor]:
        """The ELBO of one hard draw of q, and its terms."""
        model = self.model
        x = binarized(batch.images, model.spec.binarize, generator)
        q = model.infer(x)
        z = model.sample_posterior(q, generator)
        found = model.reconstruct_from(model.render(z), x, generator)
        p = model.prior(z, conditions_of(model.spec, batch))
        parts = {**model.layout.terms(q, p, z).kl, **found.kl}
        kl = total_kl(parts)
        return {"elbo": found.log_p - kl, "reconstruction": found.log_p, **parts}


def conditions_of(spec: ModelSpec, batch: Batch) -> Tensor | None:
    """The conditions of a batch; None if the prior takes none."""
    return None if spec.prior.condition == "none" else batch.condition


def training_conditions(spec: ModelSpec, batch: Batch, generator: Noise) -> Tensor | None:
    """The conditions of a batch, some of which are dropped for training (`nn.prior.dropped`)."""
    condition = conditions_of(spec, batch)
    return None if condition is None else dropped(condition, generator)


def most_open(gate: Tensor, most: int) -> Tensor:
    """gate (B, L) -> (B, L), 1 at the `most` places where the gate is largest, and 0 elsewhere."""
    return torch.zeros_like(gate).scatter_(1, gate.topk(most, dim=1).indices, 1.0)


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float
) -> list[ParameterGroup]:
    """Two groups of parameters: matrices, with weight decay, and vectors and tables, without weight decay."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        table = any(part in name for part in TABLES)
        (plain if parameter.ndim < 2 or table else decayed).append(parameter)
    return [
        {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay, "matrices": True},
        {"params": plain, "lr": learning_rate, "weight_decay": 0.0, "matrices": False},
    ]


@torch.no_grad()
def fit_temperature(model: Networks, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Fits `model.temperature` on binarised images x (B, C, H, W); returns the temperature of each choice.

    Relaxed draws make q more certain than is best for hard draws, so its logits are calibrated (Guo et al.
    2017, section 4.2). Each temperature in turn is multiplied by RATIO as long as this raises the ELBO of
    `draws` hard draws per image, at most TRIES times; if multiplication does not help, it is divided. All
    trials use the same noise.
    """
    best = _elbo(model, x, draws, seed)
    for index, name in enumerate(CHOICES):
        if name == "where":
            continue
        for ratio in (RATIO, 1 / RATIO):
            before = best
            for _ in range(TRIES):
                old = float(model.temperature[index])
                model.temperature[index] = old * ratio
                if (found := _elbo(model, x, draws, seed)) <= best:
                    model.temperature[index] = old
                    break
                best = found
            if best > before:
                break  # the other direction can only lower the ELBO
    return {name: float(value) for name, value in zip(CHOICES, model.temperature, strict=True)}


def _elbo(model: Networks, x: Tensor, draws: int, seed: int) -> float:
    generator = torch.Generator(x.device).manual_seed(seed)
    bounds = [model.importance(part, draws, generator).analytic for part in torch.split(x, BATCH)]
    return float(torch.cat(bounds, 1).double().mean())
