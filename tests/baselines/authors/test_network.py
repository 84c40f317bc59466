"""The authors' networks: the strided decoder, and the posterior of one vector for all steps.

Their draws, bounds and gradients are tested beside ours.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.baselines.authors.network import FlatPosterior, StridedDecoder
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.steps import StepLogits
from tests.helpers.tiny_models import all_drawings, shaken, tiny_model, tiny_spec

DIGITS: dict[str, Any] = {"image_shape": (1, 28, 28), "patch": 5, "stride": 5, "steps": 36}


def assert_all_trained(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("size", "channels", "outputs", "upscale"), [((28, 28), 1, 1, 1), ((2, 4), 3, 100, 2), ((7, 10), 3, 6, 3)]
)
def test_any_canvas_gives_an_image_of_its_size(
    size: tuple[int, int], channels: int, outputs: int, upscale: int
) -> None:
    torch.manual_seed(0)
    decoder = StridedDecoder(channels, outputs, width=16, depth=2, upscale=upscale)
    canvas = torch.rand(2, channels, *size, requires_grad=True)
    output = decoder(canvas)
    assert output.shape == (2, outputs, upscale * size[0], upscale * size[1])
    output.sin().sum().backward()
    assert canvas.grad is not None
    assert (canvas.grad.abs() > 0).float().mean() > 0.95
    assert_all_trained(decoder)
    torch.testing.assert_close(decoder.train()(canvas)[1:], decoder(canvas[1:]))


@torch.no_grad()
def test_on_white_the_convolutions_see_ink() -> None:
    torch.manual_seed(0)
    white = StridedDecoder(3, 6, width=16, depth=1, upscale=1, background=1.0)
    black = StridedDecoder(3, 6, width=16, depth=1, upscale=1)
    black.load_state_dict(white.state_dict())
    canvas = torch.rand(2, 3, 7, 10)
    torch.testing.assert_close(white(canvas), black(1 - canvas))
    padded = F.pad(canvas, (0, 2, 0, 1), value=1.0)
    torch.testing.assert_close(white(canvas), white(padded)[..., :7, :10])


def test_sizes_are_the_authors() -> None:
    """Counted by hand, and in their code: width 128, two blocks, 36 steps, 36 places and 50 parts."""
    decoder = StridedDecoder(1, 1, width=128, depth=2, upscale=1)
    convolutions = [1 * 16, 128 * 16, 2 * (128 * 9 + 128), 2 * 128 * 16]  # inputs x pixels of a filter
    norms = 2 * 128 * (2 + 2 * 2 + 2)
    expected = 128 * sum(convolutions) + norms + 128 + 1
    assert sum(p.numel() for p in decoder.parameters()) == expected == 1_118_337
    spec = tiny_spec("aligned", "independent", "authors", encoder_width=128, parts=50, **DIGITS)
    encoder = 128 * (9 + 1) + 3 * 128 * (128 * 9 + 1) + 4 * 2 * 128
    heads = 128 * (512 + 1) + 2 * 128 * 129 + 36 * 129 * (50 + 36 + 1)
    assert sum(p.numel() for p in FlatPosterior(spec).parameters()) == encoder + heads == 947_772


@pytest.mark.parametrize(
    "size",
    [
        DIGITS | {"parts": 7},
        {"image_shape": (3, 64, 48), "downscale": 2, "patch": 8, "stride": 8, "steps": 12, "parts": 5},
    ],
)
def test_the_posterior_sees_every_pixel_of_its_image_alone(size: dict[str, Any]) -> None:
    spec = tiny_spec("aligned", "independent", "authors", **size)
    torch.manual_seed(0)
    posterior = FlatPosterior(spec)
    shaken(posterior, 0.1)
    x = torch.rand(2, *spec.image_shape, requires_grad=True)
    q = posterior(x)
    assert q.whether.shape == (2, spec.steps)
    assert q.what.shape == (2, spec.steps, spec.parts)
    assert q.where is not None
    assert q.where.shape == (2, spec.steps, spec.grid.places)
    torch.testing.assert_close(posterior(x[1:]).what, q.what[1:], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(q.what[1].sin().sum(), x, retain_graph=True)
    assert not gradient[0].any()
    assert (gradient[1].abs() > 0).float().mean() > 0.95
    (q.whether.sin().sum() + q.what.sin().sum() + q.where.sin().sum()).backward()
    assert_all_trained(posterior)


def flat_model() -> NPDraw:
    return tiny_model(tiny_spec("aligned", "independent", "authors"))


@torch.no_grad()
def test_each_choice_has_its_temperature() -> None:
    model = flat_model()
    x = torch.rand(2, *model.spec.image_shape)
    before = model.posterior(x)
    model.temperature.copy_(torch.tensor([2.0, 4.0, 8.0]))
    after = model.infer(x)
    for divisor, name in ((2, "whether"), (4, "where"), (8, "what")):
        torch.testing.assert_close(getattr(after, name), getattr(before, name) / divisor)


@torch.no_grad()
def test_encode_is_the_likeliest_choice_of_each_step() -> None:
    model = flat_model()
    x, support = torch.rand(16, *model.spec.image_shape).round(), all_drawings(model.spec)
    q, z = model.infer(x), model.encode(x)
    for row in range(16):
        alone = StepLogits(*(logits[row : row + 1] for logits in (q.whether, q.where, q.what)))  # type: ignore[index]
        own = z[row : row + 1]
        fits = support[(support.whether == own.whether).all(1)]
        scores = model.layout.log_prob(alone.tile(len(fits)), fits)
        assert float(model.layout.log_prob(alone, own)) == pytest.approx(float(scores.max()), abs=1e-5)
        assert torch.equal(own.whether[0], alone.whether[0] > 0)
