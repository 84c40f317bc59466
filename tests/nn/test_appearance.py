"""The Gaussian latent u: its KL, the bound with it, and decoding a canvas without it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.appearance import Donor, Inferred, LocalAppearance
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.relaxations import Gaussian
from tests.helpers.tiny_models import all_drawings, random_drawings, seeded, tiny_model, tiny_spec

FORMS: list[dict[str, Any]] = [{"latents": 4}, {"latents": "map:4"}]


def test_the_divergences_are_those_of_torch() -> None:
    q, p = (Gaussian(torch.randn(5, 3, 2), torch.randn(5, 3, 2)) for _ in range(2))
    exact, prior = (Normal(g.mean, g.log_std.exp()) for g in (q, p))
    plain, standard = Inferred(q, None), Inferred(q, Gaussian(torch.zeros(5, 3, 2), torch.zeros(5, 3, 2)))
    torch.testing.assert_close(plain.kl(), standard.kl())
    torch.testing.assert_close(plain.log_ratio(q.mean), standard.log_ratio(q.mean))
    found = Inferred(q, p)
    torch.testing.assert_close(found.kl(), kl_divergence(exact, prior).sum((1, 2)))
    u = q.sample(seeded())
    torch.testing.assert_close(found.log_ratio(u), (exact.log_prob(u) - prior.log_prob(u)).sum((1, 2)))


@torch.no_grad()
@pytest.mark.parametrize("latents", FORMS)
def test_without_u_the_canvas_decodes_with_its_mean(latents: dict[str, Any]) -> None:
    spec, canvas = tiny_spec(**latents), torch.rand(3, 1, 2, 4)
    model, new = tiny_model(spec), NPDraw(spec)
    assert model.appearance is not None
    mean = model.appearance.prior(canvas).mean
    assert bool((mean.std(0) > 0).any()) == isinstance(model.appearance, LocalAppearance)
    assert torch.equal(model.decode(canvas), model.decode(canvas, mean))
    assert not torch.equal(model.decode(canvas), model.decode(canvas, mean + 1))
    torch.testing.assert_close(new.decode(canvas), new.decode(canvas, torch.ones(mean.shape)))


@torch.no_grad()
@pytest.mark.parametrize("latents", FORMS)
def test_samples_draw_u(latents: dict[str, Any]) -> None:
    model = tiny_model(tiny_spec(**latents))
    trace = model.sample_trace(10, generator=seeded())
    u = trace.codes["appearance"]
    assert u.shape[:2] == (10, 4)
    torch.testing.assert_close(trace.images, model.decode(trace.canvas, u))  # type: ignore[arg-type]
    torch.testing.assert_close(trace.decoded[:, -1], trace.images[:8])
    torch.testing.assert_close(model.sample(10, generator=seeded()), trace.images)
    assert "appearance" not in tiny_model(tiny_spec()).sample_trace(2).codes


@torch.no_grad()
@pytest.mark.parametrize("latents", [{"latents": 1}, {"latents": "map:1"}])
def test_the_weights_average_to_the_likelihood_by_quadrature(latents: dict[str, Any]) -> None:
    """exp(log_w) has the mean p(x), computed as a sum over all drawings and an integral over u."""
    spec = tiny_spec(**latents)
    model = tiny_model(spec)
    for parameter in model.posterior.parameters():
        parameter.zero_()  # a uniform q: a few of its draws say as much as many of a certain one
    x = torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 0]).view(1, 1, 2, 4)
    nodes, shares = np.polynomial.hermite_e.hermegauss(40)
    z = all_drawings(spec)
    total = torch.zeros(len(z), dtype=torch.float64)
    for node, share in zip(nodes, shares / math.sqrt(2 * math.pi), strict=True):
        assert model.appearance is not None
        p = model.appearance.prior(model.render(z))
        u = p.mean + p.log_std.exp() * node
        log_p = model.likelihood.log_prob(
            model.likelihood_of(model.render(z), u), x.expand(len(z), -1, -1, -1)
        )
        total += share * log_p.double().exp()
    exact = float((model.prior_log_prob(z).double().exp() * total).sum())
    found = model.importance(x, 20_000, seeded())
    weights = found.log_w.double().exp()
    error = float(weights.std()) / 20_000**0.5
    assert float(weights.mean()) == pytest.approx(exact, abs=5 * error)
    assert error < 0.1 * exact
    assert float(found.analytic.mean()) < math.log(exact)
    apart = found.log_w - found.analytic  # the KL as drawn and as averaged: one mean
    assert abs(float(apart.mean())) < 5 * float(apart.std()) / 20_000**0.5


def batch_of(spec: ModelSpec) -> Batch:
    images = torch.randint(256, (6, 1, 2, 4), generator=seeded()).to(torch.uint8)
    return Batch.of(images, random_drawings(spec, 6))


@pytest.mark.parametrize("progress", [0.1, 0.9])
@pytest.mark.parametrize("latents", FORMS)
def test_it_is_trained_in_both_phases_and_counted_in_the_bound(
    progress: float, latents: dict[str, Any]
) -> None:
    objective = VAEObjective(tiny_model(tiny_spec(**latents)), VAEConfig(relaxed_images=30_000))
    loss, metrics = objective(batch_of(objective.model.spec), progress, seeded())
    loss.mean().backward()
    assert objective.model.appearance is not None
    for parameter in objective.model.appearance.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()
    kl = sum(value for name, value in metrics.items() if name.startswith("kl_"))
    bound = metrics["elbo" if progress > 0.5 else "surrogate"]
    torch.testing.assert_close(bound, metrics["reconstruction"] - kl)
    assert (metrics["kl_appearance"] > 0).all()


@pytest.mark.parametrize(("progress", "weight"), [(0.1, 0.25), (0.6, 1.0), (0.3, 0.75)])
def test_its_kl_rises_to_its_full_weight(progress: float, weight: float) -> None:
    """The loss is on average -log p(x|z, u) + KL of z + weight * KL of u; bounds have no weight."""
    model, batch = tiny_model(tiny_spec(latents="map:2")), batch_of(tiny_spec())
    settings = {"relaxed_images": 12_000, "draws": 2, "parse_weight": 0}
    plain, _ = VAEObjective(model, VAEConfig(**settings))(batch, progress, seeded())
    eased, metrics = VAEObjective(model, VAEConfig(**settings, latent_ramp=0.4))(batch, progress, seeded())
    if progress < 0.2:  # relaxed draws have no score
        torch.testing.assert_close(plain - eased, (1 - weight) * metrics["kl_appearance"])
    assert torch.equal(plain, eased) == (weight == 1)


@torch.no_grad()
def test_an_odd_size_is_padded_with_the_background() -> None:
    model = tiny_model(tiny_spec("raster", image_shape=(1, 7, 10), latents=3, background="white"))
    x, canvas = torch.rand(2, 1, 7, 10), torch.rand(2, 1, 7, 10)
    padded = [[F.pad(t, (0, 0, 0, 1), value=ground) for t in (x, canvas)] for ground in (1.0, 0.0)]
    found = [model.infer_appearance(*pair) for pair in ((x, canvas), *padded)]
    odd, even, dark = (inferred.q.mean for inferred in found if inferred is not None)
    torch.testing.assert_close(odd, even)
    assert not torch.allclose(odd, dark)


@torch.no_grad()
def test_an_edited_canvas_has_the_latents_of_the_drawings_that_it_is_made_of() -> None:
    """The first cell of 4x4 pixels is A's, the second B's, the third belongs to neither."""
    model = tiny_model(tiny_spec("raster", image_shape=(1, 4, 12), latents="map:2"))
    a, b, other = (torch.rand(1, 1, 4, 12) for _ in range(3))
    edited = torch.cat([a[..., :4], b[..., 4:8], other[..., 8:]], 3)
    u_a, u_b = torch.full((1, 2, 1, 3), 5.0), torch.full((1, 2, 1, 3), 7.0)
    assert model.appearance is not None
    joined = model.appearance.joined(edited.expand(2, -1, -1, -1), [Donor(u_a, a), Donor(u_b, b)])
    assert (joined[..., 0] == 5).all()
    assert (joined[..., 1] == 7).all()
    torch.testing.assert_close(joined[:1, ..., 2], model.appearance.prior(edited).mean[..., 2])
    unknown = model.appearance.joined(a, [Donor(None, a)])
    assert torch.equal(unknown, model.appearance.prior(a).mean)

    # Where both drawings are blank, the places taken from B, the right half, have u of B.
    model = tiny_model(tiny_spec("raster", image_shape=(1, 8, 16), patch=4, stride=4, latents="map:2"))
    none = torch.zeros(1, 2, dtype=torch.int64)
    blank = PartSequence(none.bool(), none, none)
    first, second = (model.as_drawings(blank, u=torch.full((1, 2, 2, 4), u)) for u in (5.0, 7.0))
    found = model.compose(first, second, "0:2,2:4").u
    assert found is not None
    assert (found[..., :2] == 5).all()
    assert (found[..., 2:] == 7).all()

    # Global latents are those of the first drawing.
    model, canvas = tiny_model(tiny_spec(latents=2)), torch.rand(3, 1, 2, 4)
    u = torch.tensor([[1.0, 2.0]])
    assert model.appearance is not None
    joined = model.appearance.joined(canvas, [Donor(u, canvas[:1]), Donor(-u, canvas[1:2])])
    assert torch.equal(joined, u.expand(3, -1))
