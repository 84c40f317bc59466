"""What the two training stages minimise for each image, in nats (paper section 3.3).

Shapes: B batch, T steps, L places, K parts, C channels, H x W image.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.objective import Objective, ParameterGroup
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.schedules import ramp
from npdraw_dist.nn.canvas import soft_canvas
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import Prior
from npdraw_dist.nn.relaxations import (
    bernoulli_straight_through,
    binary_concrete,
    gumbel_softmax,
    straight_through,
)
from npdraw_dist.nn.steps import StepLogits, kl_parts, log_prob


class PriorObjective(Objective):
    """-log p(z) of the parses: maximum likelihood of the prior."""

    def __init__(self, prior: Prior, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self.prior = prior
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def parameter_groups(self) -> list[ParameterGroup]:
        return decay_groups(self.prior.named_parameters(), self.learning_rate, self.weight_decay)

    def networks(self) -> list[nn.Module]:
        return list(self.prior.blocks)

    def forward(
        self, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nll = -self.prior.log_prob(batch.z)
        return nll, {"nll": nll}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The negative log-probability of the parses, in nats."""
        return {"nll": -self.prior.log_prob(batch.z)}


class VAEObjective(Objective):
    """-log p(x|z) + beta KL(q || p) + lambda cross-entropy of q to the parse (paper eq. 6)."""

    def __init__(self, model: NPDraw, config: VAEConfig, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.model, self.config, self.weight_decay = model, config, weight_decay
        if not config.train_prior:
            model.prior.requires_grad_(False)

    def parameter_groups(self) -> list[ParameterGroup]:
        named = dict(self.model.named_parameters())
        rest = [p for n, p in named.items() if not n.startswith("prior.")]
        groups: list[ParameterGroup] = [
            {"params": rest, "lr": self.config.learning_rate, "weight_decay": 0.0}
        ]
        if self.config.train_prior:
            prior = self.model.prior.named_parameters()
            groups += decay_groups(prior, self.config.prior_learning_rate, self.weight_decay)
        return groups

    def networks(self) -> list[nn.Module]:
        return [*self.model.prior.blocks, self.model.decoder, self.model.posterior.trunk]

    def forward(
        self, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, model, parse = self.config, self.model, batch.z
        x = binarized(batch.images, model.spec.binarize, generator)
        q: StepLogits = model.posterior(x).float32()
        canvas, z = self._draw(q, parse, progress, generator)
        reconstruction = model.likelihood.log_prob(model.decoder(canvas), x)
        parts = kl_parts(q, model.prior(z).float32())
        kl = parts["kl_whether"] + parts["kl_where"] + parts["kl_what"]
        cross_entropy = -log_prob(q, parse)
        weight = ramp(progress, config.parse_weight, config.parse_weight_end, config.parse_ramp)
        loss = -reconstruction + config.beta * kl + weight * cross_entropy
        # Of relaxed draws, so no bound: `elbo` is of hard draws only (`evaluate`).
        return loss, {
            "surrogate": reconstruction - kl,
            "reconstruction": reconstruction,
            "parse_cross_entropy": cross_entropy,
            **parts,
        }

    def _draw(
        self, q: StepLogits, parse: PartSequence, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, PartSequence]:
        """A relaxed draw of q: the canvas with gradients, and the hard z that conditions the prior."""
        config = self.config
        tau = ramp(progress, config.tau_start, config.tau_end, 1.0)
        what = gumbel_softmax(q.what, tau, generator)
        if config.whether_gradient == "relaxed":
            gate = binary_concrete(q.whether, tau, generator)
        else:
            gate = bernoulli_straight_through(q.whether, generator)
        if config.whether_gradient == "none":
            gate = gate.detach()
        where_weights = None if q.where is None else straight_through(gumbel_softmax(q.where, tau, generator))
        where = None if where_weights is None else where_weights.argmax(-1)
        hard = what.argmax(-1)
        if config.what_gradient == "straight_through":
            what = straight_through(what)
        teacher = ramp(progress, config.teacher_start, 0.0, config.teacher_ramp)
        if teacher > 0:
            forced = torch.rand(len(gate), generator=generator, device=gate.device) < teacher
            what = torch.where(forced[:, None, None], F.one_hot(parse.what, what.shape[-1]).float(), what)
            hard = torch.where(forced[:, None], parse.what, hard)
            gate = torch.where(forced[:, None], parse.whether.float(), gate)
            if where is not None:
                where = torch.where(forced[:, None], parse.where, where)
        canvas = self._canvas(what, gate, where, where_weights)
        places = parse.where if where is None else where  # aligned: step t of the parse is at place t
        return canvas, PartSequence(gate.detach() > 0.5, places, hard)

    def _canvas(
        self, what: Tensor, gate: Tensor, where: Tensor | None, where_weights: Tensor | None
    ) -> Tensor:
        return soft_canvas(self.model.bank_parts, what, gate, where, where_weights, self.model.grid)

    def evaluate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The ELBO of one hard draw of q and its parts."""
        model = self.model
        x = binarized(batch.images, model.spec.binarize, generator)
        q = model.infer(x)
        z = model.sample_posterior(q, generator)
        reconstruction = model.log_likelihood(z, x)
        parts = kl_parts(q, model.prior(z))
        kl = parts["kl_whether"] + parts["kl_where"] + parts["kl_what"]
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, **parts}


def decay_groups(
    named: Iterator[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float
) -> list[ParameterGroup]:
    """Two groups: matrices have weight decay; vectors and tables have none."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        table = any(part in name for part in ("drawn", "part", "place", "position", "blank"))
        (plain if parameter.ndim < 2 or table else decayed).append(parameter)
    return [
        {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": plain, "lr": learning_rate, "weight_decay": 0.0},
    ]
