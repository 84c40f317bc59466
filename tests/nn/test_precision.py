"""In bfloat16 q, p and gradients are nearly those of float32, for all networks, with banks of real patches.

CPU autocast rounds as a GPU does. Where a draw would differ, both passes get the same draw: a discrete
choice that flips is no rounding.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.baselines.authors import model as authors
from npdraw_dist.baselines.base import BaselineObjective
from npdraw_dist.config.load import resolve
from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn import objective
from npdraw_dist.nn.blocks import ExactConv2d, ExactConvTranspose2d, ExactLinear
from npdraw_dist.nn.hub import class_of
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.nn.steps import kl_steps
from npdraw_dist.parse.parser import Parser
from tests.helpers.tiny_baselines import KINDS, strokes, tiny_baseline
from tests.helpers.tiny_models import seeded
from tests.helpers.tiny_presets import real_images

IMAGES = 8
Gradients = dict[str, Tensor]
# Sizes for a CPU: bfloat16 is slow there. What the network is made of stays.
SMALL: dict[str, Any] = {
    "prior": {"depth": 2, "width": 32, "attention_heads": 2, "dropout": 0.0},
    "vae": {"encoder_width": 32, "decoder_width": 32, "decoder_depth": 1},
}

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
    exact.square().sum().backward()
    plain(x).square().sum().backward()
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exact, plain(x))
    assert torch.equal(narrow, plain(x.bfloat16().float()))
    assert torch.equal(layer(x), plain(x))
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Gives the layers that start at zero, or small, usual weights, so that they count as after training."""
    generator = seeded()
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not weight.any():
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
        elif name.endswith("posterior.head.out.weight"):
            weight.mul_(10)


@cache
def prepared(name: str, awake: bool) -> tuple[VAEObjective, Batch]:
    """A small model of a preset, with a real bank, at its start or awake; images and their parses."""
    experiment = resolve(name, None, SMALL)
    torch.manual_seed(0)
    spec = ModelSpec.of(experiment)  # the authors' sizes are constants
    sizes = {"head_width": spec.prior.width // spec.prior.attention_heads, "mlp": 4 * spec.prior.width}
    model = class_of(spec, NPDraw)(spec.model_copy(update={"prior": spec.prior.model_copy(update=sizes)}))
    real = torch.from_numpy(real_images(experiment.data.shape, 160))
    seen = canvas_bytes(real, experiment.grid.downscale)
    patches = extract(seen.numpy(), experiment.canvas_grid, experiment.bank.min_energy)
    bank = build_bank(patches, seen.shape[1], experiment.bank, experiment.seed)[0]
    model.set_bank(bank)
    if awake:
        wake(model)
    batch = Batch.of(real[:IMAGES], Parser.of(experiment, bank)(seen[:IMAGES]).z)
    return model.objective(experiment.vae).eval(), batch


# Of each network one preset: in a fixed order and by a path, in grey and in colour.
CASES: list[Any] = [("digits", False), ("authors", False)]
CASES += [(name, True) for name in ("digits", "authors", "mnist_path")]
CASES += [pytest.param(name, True, marks=pytest.mark.slow) for name in ("celeba", "emoji")]
each_case = pytest.mark.parametrize(("name", "awake"), CASES)


@each_case
def test_q_and_p_are_nearly_those_of_float32(name: str, awake: bool) -> None:
    trained, few = prepared(name, awake)
    model = trained.model
    x = binarized(few.images, model.spec.binarize, seeded())
    q, nll, fit = [], [], []
    for on in (False, True):
        with torch.no_grad(), bfloat16(on):
            q.append(model.infer(x))
            nll.append(-model.prior.log_prob(few.z).double().mean())
            found = model.reconstruct_from(model.render(few.z), x, seeded(1))
        assert (nll[-1].dtype, found.log_p.dtype, q[-1].what.dtype) == (torch.float64, *2 * [torch.float32])
        fit.append(found.log_p.double().mean())
    divergence = torch.stack([part.sum(1) for part in kl_steps(q[0], q[1]).values()]).sum(0)
    assert float(divergence.max()) < 0.01
    assert float(nll[1]) == pytest.approx(float(nll[0]), rel=1e-3)
    assert float(fit[1]) == pytest.approx(float(fit[0]), rel=1e-3)
    prior = PriorObjective(copy.deepcopy(model.prior).requires_grad_(True), 1e-3).eval()
    assert cosine(*(gradients(prior, few, 0.0, on) for on in (False, True))) > 0.999


def same_draws(patch: pytest.MonkeyPatch, *functions: tuple[object, str]) -> Callable[[], None]:
    """Records what the functions return; once the callable is called, they return it again, in order."""
    kept: list[Any] = []
    again: list[Any] = []

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found = function(*args)  # also the second time: it takes the same noise from the generator
            kept.append(found)
            return again.pop(0) if again else found

        return call

    for owner, name in functions:
        patch.setattr(owner, name, recording(getattr(owner, name)))
    return lambda: again.extend(kept)


def gradients(trained: Objective, batch: Batch, progress: float, on: bool) -> Gradients:
    trained.zero_grad()
    with bfloat16(on):
        loss, metrics = trained(batch, progress, seeded(3))
    assert all(value.dtype == torch.float32 for value in (loss, *metrics.values()))
    loss.sum().backward()
    return {name: p.grad.double() for name, p in trained.named_parameters() if p.grad is not None}


def cosine(a: Gradients, b: Gradients) -> float:
    assert a.keys() == b.keys()
    first, second = (torch.cat([table[name].flatten() for name in a]) for table in (a, b))
    return float(first @ second / first.norm() / second.norm())


@pytest.mark.parametrize("phase", ["relaxed", "hard"])
@each_case
def test_the_gradient_of_the_vae_is_nearly_that_of_float32(
    name: str, awake: bool, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, few = prepared(name, awake)
    model = trained.model
    share = trained.relaxed_share
    progress = {"relaxed": 0.5 * share, "hard": 0.5 + 0.5 * share}[phase]
    if trained.is_hard(progress) != (phase == "hard"):
        pytest.skip(f"the preset has no {phase} draws")
    relaxed = [(objective, "most_open"), (model.layout, "arranged")]
    of_authors = [(authors, "categorical_sample"), (authors, "bernoulli_sample")]
    functions = [(model, "sample_posterior")] if phase == "hard" else [*of_authors, *relaxed]
    repeat = same_draws(monkeypatch, *functions)
    exact = gradients(trained, few, progress, False)
    repeat()
    rounded = gradients(trained, few, progress, True)
    assert cosine(exact, rounded) > 0.999


CHOSEN = [("vae", "bernoulli"), ("vae", "logistic"), *((kind, "logistic_mixture") for kind in KINDS)]


@pytest.mark.parametrize(("kind", "likelihood"), CHOSEN)
def test_the_gradient_of_a_baseline_is_nearly_that_of_float32(kind: str, likelihood: str) -> None:
    channels = 1 if LIKELIHOODS[likelihood].binary else 3
    binarize = "threshold" if LIKELIHOODS[likelihood].binary else "none"
    shape = (channels, 6, 6)
    model = tiny_baseline(
        kind, hidden=32, width=16, image_shape=shape, likelihood=likelihood, binarize=binarize
    )
    trained = BaselineObjective(model, VAEConfig())
    batch = Batch.of(strokes(IMAGES, channels), PartSequence.empty(IMAGES))
    # Relaxed draws of codes, then hard ones: rounding changes one or another code.
    for progress, least in ((0.0, 0.998), (0.9, 0.999)):
        exact, rounded = (gradients(trained, batch, progress, on) for on in (False, True))
        assert cosine(exact, rounded) > least
