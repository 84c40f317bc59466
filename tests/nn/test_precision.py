"""In bfloat16 q, p and gradients are nearly those of float32, for all presets, with banks of real patches.

CPU autocast rounds as a GPU does. Where a draw would differ, both passes get the same draw: a discrete
choice that flips is no rounding.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from npdraw_dist.config.load import preset_names
from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch
from npdraw_dist.nn import objective
from npdraw_dist.nn.authors import training as authors
from npdraw_dist.nn.baselines.base import BaselineObjective
from npdraw_dist.nn.blocks import ExactConv2d, ExactConvTranspose2d, ExactLinear, exactly
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.nn.steps import kl_steps
from tests.helpers.preset_models import PresetModel, preset_model, trained_briefly, wake
from tests.helpers.tiny_baselines import KINDS, strokes, tiny_baseline

IMAGES, TRAINED_ON = 8, 48
Gradients = dict[str, Tensor]

LAYERS = [
    (ExactLinear(6, 5), nn.Linear(6, 5), (3, 6)),
    (ExactConv2d(6, 5, 3), nn.Conv2d(6, 5, 3), (3, 6, 4, 4)),
    (ExactConvTranspose2d(6, 5, 2), nn.ConvTranspose2d(6, 5, 2), (3, 6, 4, 4)),
]


def bfloat16(on: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=on)


@pytest.mark.parametrize(("layer", "plain", "shape"), LAYERS)
def test_an_exact_layer_is_the_plain_one_without_rounding(
    layer: nn.Module, plain: nn.Module, shape: tuple[int, ...]
) -> None:
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(shape)
    with bfloat16():
        rounded, exact, narrow = plain(x), layer(x), layer(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exact, plain(x))
    assert torch.equal(narrow, plain(x.bfloat16().float()))
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.double()(x.double()), plain.double()(x.double()))


def test_without_autocast_nothing_is_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no autocast to switch off")

    monkeypatch.setattr(torch, "autocast", refuse)
    x = torch.rand(2, 6)
    ExactLinear(6, 5)(x)
    with exactly(x):
        pass
    ExactLinear(6, 5, device="meta")(x.to("meta"))


def test_the_gradient_of_an_exact_layer_is_not_rounded() -> None:
    layer, x = ExactLinear(6, 5), torch.rand(3, 6, requires_grad=True)
    weight = torch.rand(3, 5)
    (layer(x) * weight).sum().backward()
    exact = [p.grad.clone() for p in (x, *layer.parameters()) if p.grad is not None]
    x.grad = None
    layer.zero_grad()
    with bfloat16():
        loss = (layer(x) * weight).sum()
    loss.backward()
    for p, expected in zip((x, *layer.parameters()), exact, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("network", ["decoder", "posterior.trunk"])
@pytest.mark.parametrize("name", ["mnist", "authors"])
def test_a_traced_network_switches_as_the_plain_one_does(name: str, network: str) -> None:
    """`train.compile` traces them: without a break, and with the same switches."""
    case = preset_model(name, 2, small=True)
    module = case.model.get_submodule(network)
    traced = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.rand(2, *case.experiment.data.shape)
    for on in (False, True):
        with torch.no_grad(), bfloat16(on):
            torch.testing.assert_close(traced(x), module(x), rtol=1e-6, atol=1e-6)


@cache
def prepared(name: str, training: str) -> PresetModel:
    """A preset's model: at its `start`, or `trained` a little from weights of which none are zero."""
    case = preset_model(name, TRAINED_ON, small=True)
    if training == "trained":
        wake(case.model)
        trained_briefly(PriorObjective(case.model.prior, case.experiment.prior.learning_rate), case.batch)
        trained_briefly(case.objective, case.batch)
    case.model.prior.requires_grad_(True)
    return case


ALIKE = (
    "celeba_cluster",
    "mnist_cluster",
    "emoji64",
    "glyphs",
)  # the networks of other presets; glyphs: in grey
PRESETS = [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in preset_names()]


@pytest.mark.few(2)
@pytest.mark.parametrize("training", ["start", "trained"])
@pytest.mark.parametrize("name", PRESETS)
def test_q_and_p_are_nearly_those_of_float32(name: str, training: str) -> None:
    case = prepared(name, training)
    model, few = case.model.eval(), case.batch[:IMAGES]
    x = binarized(few.images, model.spec.binarize, torch.Generator().manual_seed(0))
    q, nll, fit = [], [], []
    for on in (False, True):
        with torch.no_grad(), bfloat16(on):
            q.append(model.infer(x))
            nll.append(-model.prior.log_prob(few.z).double().mean())
            found = model.reconstruct_from(model.render(few.z), x, torch.Generator().manual_seed(1))
        assert (nll[-1].dtype, found.log_p.dtype, q[-1].what.dtype) == (torch.float64, *2 * [torch.float32])
        fit.append(found.log_p.double().mean())
    divergence = torch.stack([part.sum(1) for part in kl_steps(q[0], q[1]).values()]).sum(0)
    assert float(divergence.max()) < 0.01
    assert float(nll[1]) == pytest.approx(float(nll[0]), rel=1e-3)
    assert float(fit[1]) == pytest.approx(float(fit[0]), rel=1e-3)


class SameDraws:
    """Records what functions return in one pass, and returns it in the next one instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._kept: list[Any] = []
        self._again: Iterator[Any] | None = None

    def of(self, owner: object, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any) -> Any:
            found = function(*args)  # also the second time: it takes the same noise from the generator
            if self._again is not None:
                return next(self._again)
            self._kept.append(found)
            return found

        self._patch.setattr(owner, name, call)

    def repeat(self) -> None:
        self._again = iter(self._kept)


def gradients(trained: Objective, batch: Batch, progress: float, on: bool) -> Gradients:
    trained.zero_grad()
    with bfloat16(on):
        loss, _ = trained(batch, progress, torch.Generator().manual_seed(3))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    return {name: p.grad.double() for name, p in trained.named_parameters() if p.grad is not None}


def cosine(a: Gradients, b: Gradients) -> float:
    assert a.keys() == b.keys()
    first, second = (torch.cat([table[name].flatten() for name in a]) for table in (a, b))
    return float(first @ second / first.norm() / second.norm())


@pytest.mark.few(2)
@pytest.mark.parametrize("phase", ["relaxed", "hard"])
@pytest.mark.parametrize("training", ["start", "trained"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_gradient_of_the_vae_is_nearly_that_of_float32(
    name: str, training: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = prepared(name, training)
    trained, model, few = case.objective.eval(), case.model, case.batch[:IMAGES]
    share = trained.relaxed_share
    progress = {"relaxed": 0.5 * share, "hard": 0.5 + 0.5 * share}[phase]
    if trained.is_hard(progress) != (phase == "hard"):
        pytest.skip(f"the preset has no {phase} draws")
    draws = SameDraws(monkeypatch)
    if phase == "hard":
        draws.of(model, "sample_posterior")
    else:
        draws.of(authors, "categorical_sample")
        draws.of(authors, "bernoulli_sample")
        draws.of(objective, "most_open")
        draws.of(model.layout, "arranged")
    exact = gradients(trained, few, progress, False)
    draws.repeat()
    rounded = gradients(trained, few, progress, True)
    model.prior.requires_grad_(True)
    assert cosine(exact, rounded) > 0.999


@pytest.mark.few(2)
@pytest.mark.parametrize("training", ["start", "trained"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_gradient_of_the_prior_is_nearly_that_of_float32(name: str, training: str) -> None:
    case = prepared(name, training)
    trained = PriorObjective(case.model.prior, 1e-3).eval()
    few = case.batch[:IMAGES]
    assert cosine(*(gradients(trained, few, 0.0, on) for on in (False, True))) > 0.999


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_baseline_is_nearly_that_of_float32(kind: str, likelihood: str) -> None:
    channels = 1 if LIKELIHOODS[likelihood].binary else 3
    binarize = "threshold" if LIKELIHOODS[likelihood].binary else "none"
    model = tiny_baseline(
        kind,
        image_shape=(channels, 6, 6),
        likelihood=likelihood,
        binarize=binarize,
        hidden=32,
        width=16,
    )
    trained = BaselineObjective(model, preset_model("digits", 1, small=True).experiment.vae)
    images = strokes(IMAGES, channels)
    none = torch.zeros(IMAGES, 0, dtype=torch.int64)
    batch = Batch(images, none.bool(), none, none)
    exact, rounded = (gradients(trained, batch, 0.0, on) for on in (False, True))
    assert cosine(exact, rounded) > 0.999
