"""Models small enough to enumerate, and the enumeration. Shapes: N sequences, T steps, L places, K parts."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.nn.hub import class_of
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.steps import StepLogits

GREY: dict[str, Any] = {"image_shape": (1, 7, 8), "patch": 3, "stride": 3, "parts": 4, "steps": 9}
COLOUR: dict[str, Any] = {
    **{"image_shape": (3, 8, 8), "downscale": 2, "parts": 4, "steps": 4},
    **{"likelihood": "logistic_mixture", "binarize": "none"},
}
# Arguments of `tiny_spec`: each way to choose places, and the authors' networks.
KINDS = [
    ("aligned", "chained", "ours"),
    ("raster", "independent", "ours"),
    ("aligned", "independent", "authors"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: PartSequence, b: PartSequence) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("whether", "where", "what"))


def tiny_spec(
    order: str = "aligned",
    heads: str = "chained",
    network: str = "ours",
    table: str = "joint",
    **changes: Any,
) -> ModelSpec:
    """2 x 4 canvas, two places, two parts, two steps, unless changed.

    network: `ours`, `lstm` (ours, with an LSTM in the prior) or `authors`.
    """
    prior: dict[str, Any] = {
        **{"depth": 2, "width": 16, "attention_heads": 2, "head_width": 8, "mlp": 32, "dropout": 0.0},
        **{"heads": heads, "table": table, "network": "lstm" if network == "lstm" else "transformer"},
    }
    values: dict[str, Any] = {
        **{"image_shape": (1, 2, 4), "downscale": 1, "patch": 2, "stride": 2, "parts": 2, "steps": 2},
        **{"likelihood": "bernoulli", "binarize": "threshold"},
        **{"encoder_width": 16, "decoder_width": 16, "decoder_depth": 1},
        **{"order": order, "prior": prior, "kind": "authors" if network == "authors" else "npdraw"},
    }
    return ModelSpec.model_validate(values | changes)


def shaken(module: torch.nn.Module, amount: float = 0.3) -> None:
    """Moves every parameter away from its start, so that nothing is zero or near uniform."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape))


def tiny_prior(spec: ModelSpec, seed: int = 0) -> StepPrior:
    """A prior in float64 with shaken weights."""
    torch.manual_seed(seed)
    prior = class_of(spec, NPDraw).make_prior(spec)
    shaken(prior, 0.1 if spec.authors else 0.3)  # no last norm keeps its logits small
    prior.set_bank(torch.rand(spec.parts, spec.image_shape[0], spec.patch, spec.patch))
    return prior.double().eval()


def tiny_model(spec: ModelSpec, seed: int = 0) -> NPDraw:
    """A model with shaken weights and a bank of random parts."""
    torch.manual_seed(seed)
    model = class_of(spec, NPDraw)(spec)
    shaken(model)
    if spec.authors:  # no last norm keeps the prior's logits small
        for parameter in model.prior.parameters():
            parameter.data.mul_(0.5)
    model.temperature.data.fill_(1.0)
    channels = spec.image_shape[0]
    model.set_bank(PartBank(torch.rand(spec.parts, channels, spec.patch, spec.patch)))
    return model.eval()


def log_likelihood(model: NPDraw, z: PartSequence, x: Tensor) -> Tensor:
    """log p(x|z), (B,) nats, of a model without a Gaussian latent."""
    assert model.appearance is None
    return model.reconstruct_from(model.render(z), x, None).log_p


def of_all_drawings(model: NPDraw, image: Tensor) -> tuple[PartSequence, StepLogits, Tensor, Tensor]:
    """All N drawings that the posterior can draw of one image; their logits, log q(z|x) and log p(x, z)."""
    z = all_drawings(model.spec, model.bank_parts)
    q = model.infer(image).tile(len(z))
    log_p = log_likelihood(model, z, image.expand(len(z), -1, -1, -1)) + model.prior.log_prob(z)
    return z, q, model.layout.log_prob(q, z), log_p


def all_drawings(spec: ModelSpec, bank: Tensor | None = None) -> PartSequence:
    """All drawings that the posterior can draw. bank: needed if the parts decide the order."""
    if spec.aligned:
        return all_sequences(spec)
    return every_arranged(spec, torch.zeros(spec.parts, 1, 1, 1) if bank is None else bank)


def every_arranged(spec: ModelSpec, bank: Tensor) -> PartSequence:
    """All sets of at most T places with all parts, in the order of the spec."""
    table = torch.tensor(list(itertools.product(range(spec.parts + 1), repeat=spec.grid.places)))
    table = table[(table > 0).sum(1) <= spec.steps]
    return class_of(spec, NPDraw).make_layout(spec).arranged(table > 0, (table - 1).clamp(min=0), bank)


def random_drawings(spec: ModelSpec, batch: int, seed: int = 0) -> PartSequence:
    """Random drawings in the form that a parser gives."""
    g = seeded(seed)
    drawn = torch.rand(batch, spec.grid.places, generator=g).argsort(1) < torch.randint(
        spec.steps + 1, (batch, 1), generator=g
    )
    whether, where = ORDERS[spec.order].arrange(drawn, drawn.float(), spec.grid, spec.steps)
    return PartSequence(whether, where.clone(), torch.randint(spec.parts, whether.shape, generator=g))


def random_sequence(spec: ModelSpec, batch: int, seed: int = 0) -> PartSequence:
    g = seeded(seed)
    shape = (batch, spec.steps)
    where = torch.randint(spec.grid.places, shape, generator=g)
    if spec.where_given:
        where = torch.arange(spec.steps).expand(shape).clone()
    what = torch.randint(spec.parts, shape, generator=g)
    return PartSequence(torch.rand(shape, generator=g) < 0.6, where, what)


def all_sequences(spec: ModelSpec) -> PartSequence:
    """All N sequences, without those that differ only in ignored values."""
    steps = []
    for t in range(spec.steps):
        places = [t] if spec.where_given else range(spec.grid.places)
        choices = itertools.product([1], places, range(spec.parts))
        steps.append([(0, places[0], 0), *choices])
    table = torch.tensor(list(itertools.product(*steps)))
    return PartSequence(table[..., 0].bool(), table[..., 1], table[..., 2])


def assert_sums_to_one(log_p: Tensor) -> None:
    """log_p: (N,) nats."""
    assert float(log_p.detach().double().exp().sum()) == pytest.approx(1, abs=1e-5)


def assert_draws_follow(p: Tensor, z: PartSequence, support: PartSequence) -> None:
    """The n draws z have the probabilities p (N,) of all N sequences in `support`."""

    def code(of: PartSequence) -> Tensor:
        of = of.canonical()
        return ((of.whether * 16 + of.where * 4 + of.what) * 64 ** torch.arange(of.steps)).sum(1)

    counts, n = (code(z)[:, None] == code(support)).double().sum(0), len(z)
    assert counts.sum() == n
    assert ((counts / n - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-6).all()


def assert_frequencies(model: NPDraw, q: StepLogits, z: PartSequence, every: PartSequence) -> None:
    """The n draws z have the frequencies of q, one image's posterior. every: all drawings, none twice."""
    columns = [
        (getattr(z, name)[:, None] == getattr(every, name)).all(-1) for name in ("whether", "where", "what")
    ]
    counts = torch.stack(columns).all(0).double().mean(0)
    assert float(counts.sum()) == pytest.approx(1)
    p = model.layout.log_prob(q.tile(len(every)), every).exp().double()
    assert ((counts - p).abs() < 4.5 * (p * (1 - p) / len(z)).sqrt() + 1e-9).all()
