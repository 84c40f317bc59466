"""A decoder before training, whose image is the canvas; the classifier whose features measure distances."""

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.nn import classifier
from npdraw_dist.nn.classifier import Classifier, Labelled, fit
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.likelihoods import DiscretizedLogisticMixture, make_likelihood
from tests.helpers.tiny_models import seeded


def canvas(channels: int, batch: int = 16) -> torch.Tensor:
    """Flat 4x4 tiles of random values, as parts draw them."""
    tiles = torch.rand(batch, channels, 4, 4, generator=seeded())
    return tiles.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize(
    ("name", "channels", "upscale"),
    [("bernoulli", 1, 1), ("logistic", 3, 2), ("logistic_mixture", 1, 2), ("logistic_mixture", 3, 1)],
)
def test_the_first_image_is_the_canvas(name: str, channels: int, upscale: int) -> None:
    torch.manual_seed(0)
    likelihood = make_likelihood(name, channels)
    decoder = Decoder(likelihood.canvas_start(), width=32, depth=1, upscale=upscale)
    seen = canvas(channels)
    with torch.no_grad():
        image = likelihood.mean(decoder(seen))
    expected = seen if upscale == 1 else F.interpolate(seen, scale_factor=2.0, mode="bilinear")
    assert image.shape == expected.shape
    if name == "bernoulli":  # its logits are linear in the canvas, so that black is 0.05 and white 0.95
        expected = torch.sigmoid(6 * expected - 3)
    error = (image - expected).abs()
    assert float(error.mean()) < 0.04
    assert float(error.max()) < 0.2
    # No channel shows another one's canvas.
    for channel in range(channels):
        shown = torch.stack([image[:, channel], *expected.unbind(1)]).flatten(1)
        alike = torch.corrcoef(shown)[0, 1:]
        assert int(alike.argmax()) == channel
        assert float(alike[channel]) > 0.95


def test_the_components_of_a_mixture_start_apart() -> None:
    """Equal components would stay equal for ever: their gradients have to differ."""
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


def test_features_are_standard_also_of_data_in_the_order_of_their_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier, "STANDARD", 100)
    torch.manual_seed(0)
    model, dark = Classifier((1, 8, 8), 2, 4), torch.arange(400) < 200
    images = (
        torch.randint(56, (400, 1, 8, 8), dtype=torch.uint8) + torch.where(dark, 0, 200)[:, None, None, None]
    )
    data = Labelled(images.byte(), dark.long(), "none")
    fit(model, data, classifier.BATCH, seeded(), lambda seen: None)
    features = model(images / 255).detach()
    assert features.mean(0).abs().max() < 0.3
    assert (features.std(0) - 1).abs().max() < 0.2


def test_features_are_standard_and_scripted_alike() -> None:
    torch.manual_seed(0)
    model = Classifier((3, 9, 10), 4, 6).eval()
    images = torch.rand(200, 3, 9, 10)
    logits = model.logits(images)
    model.standardize(images)
    features = model(images)
    torch.testing.assert_close(features.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.jit.script(model)(images), features)
    assert logits.shape == (200, 4)
    torch.testing.assert_close(model.logits(images), logits)  # the classes are as before
