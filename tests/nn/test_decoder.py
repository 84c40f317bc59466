"""A decoder before training: its image is the canvas, whatever the likelihood."""

import math

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.likelihoods import DiscretizedLogisticMixture, make_likelihood

KINDS = [("bernoulli", 1), ("logistic", 1), ("logistic", 3), ("logistic_mixture", 1), ("logistic_mixture", 3)]


def canvas(channels: int, batch: int = 16) -> torch.Tensor:
    """Flat 4x4 tiles of random values, as parts draw them."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.rand(batch, channels, 4, 4, generator=generator)
    return tiles.repeat_interleave(4, 2).repeat_interleave(4, 3)


def enlarged(image: torch.Tensor, upscale: int) -> torch.Tensor:
    if upscale == 1:
        return image
    return torch.nn.functional.interpolate(image, scale_factor=float(upscale), mode="bilinear")


@pytest.mark.parametrize("upscale", [1, 2])
@pytest.mark.parametrize(("name", "channels"), KINDS)
def test_the_first_image_is_the_canvas(name: str, channels: int, upscale: int) -> None:
    torch.manual_seed(0)
    likelihood = make_likelihood(name, channels)
    decoder = Decoder(likelihood.canvas_start(), width=32, depth=1, upscale=upscale)
    seen = canvas(channels)
    with torch.no_grad():
        image = likelihood.mean(decoder(seen))
    expected = enlarged(seen, upscale)
    assert image.shape == expected.shape
    if name == "bernoulli":  # its logits are linear in the canvas, so that black is 0.05 and white 0.95
        expected = torch.sigmoid(6 * expected - 3)
    error = (image - expected).abs()
    assert float(error.mean()) < 0.04
    assert float(error.max()) < 0.2
    # No channel shows another one's canvas.
    for channel in range(channels):
        others = [
            torch.corrcoef(torch.stack([image[:, channel].flatten(), expected[:, c].flatten()]))[0, 1]
            for c in range(channels)
        ]
        assert max(range(channels), key=lambda c: float(others[c])) == channel
        assert float(others[channel]) > 0.95


@pytest.mark.parametrize("name", ["logistic", "logistic_mixture"])
def test_the_first_scale_fits_a_parse(name: str) -> None:
    """An image near its canvas costs fewer bits than the uniform's 8, a black one not without bound."""
    torch.manual_seed(0)
    likelihood = make_likelihood(name, 3)
    decoder = Decoder(likelihood.canvas_start(), width=32, depth=1, upscale=1)
    seen = canvas(3)
    near = ((seen + 0.05 * torch.randn(seen.shape)).clamp(0, 1) * 255).round() / 255
    with torch.no_grad():
        output = decoder(seen)
        bits = -likelihood.log_prob(output, near) / (seen[0].numel() * math.log(2))
        wrong = -likelihood.log_prob(output, torch.zeros_like(seen)) / (seen[0].numel() * math.log(2))
    assert float(bits.mean()) < 6.2
    assert float(wrong.mean()) < 20


def test_the_components_of_a_mixture_start_apart() -> None:
    """The same everywhere would stay the same for ever: their gradients have to differ."""
    torch.manual_seed(0)
    likelihood = DiscretizedLogisticMixture(3)
    start = likelihood.canvas_start()
    seen = canvas(3, batch=2)
    output = torch.einsum("qc,bchw->bqhw", start.weight, seen * 2 - 1) + start.bias.view(-1, 1, 1)
    output.requires_grad_()
    likelihood.log_prob(output, (seen + 0.1).clamp(0, 1)).sum().backward()
    assert output.grad is not None
    for gradient in output.grad.view(2, 10, 10, 16, 16)[:, :7].sum((0, 3, 4)):  # logits, locations, scales
        assert len(gradient.unique()) == 10


@torch.no_grad()
def test_an_odd_canvas_is_padded_with_its_background() -> None:
    torch.manual_seed(0)
    start = make_likelihood("logistic", 3).canvas_start()
    white = Decoder(start, width=16, depth=1, upscale=1, background=1.0)
    black = Decoder(start, width=16, depth=1, upscale=1)
    black.load_state_dict(white.state_dict())
    canvas = torch.rand(2, 3, 7, 8)
    padded = F.pad(canvas, (0, 0, 0, 1), value=1.0)
    # The last convolution of 3x3 sees the row that was added.
    torch.testing.assert_close(white(canvas)[..., :6, :], black(padded)[..., :6, :])
    assert not torch.allclose(black(canvas)[..., :6, :], black(padded)[..., :6, :])
