"""The strided decoder: sizes, gradients, what a pixel of the image can see."""

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.nn.authors.network import StridedDecoder


@pytest.mark.parametrize("size", [(28, 28), (2, 4), (7, 10), (32, 32)])
@pytest.mark.parametrize(("channels", "outputs", "upscale"), [(1, 1, 1), (3, 100, 2), (3, 6, 3)])
def test_any_canvas_gives_an_image_of_its_size(
    size: tuple[int, int], channels: int, outputs: int, upscale: int
) -> None:
    decoder = StridedDecoder(channels, outputs, width=16, depth=2, upscale=upscale)
    canvas = torch.rand(2, channels, *size, requires_grad=True)
    output = decoder(canvas)
    assert output.shape == (2, outputs, upscale * size[0], upscale * size[1])
    output.sin().sum().backward()
    assert canvas.grad is not None
    assert (canvas.grad.abs() > 0).float().mean() > 0.95
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_an_image_does_not_see_its_batch() -> None:
    torch.manual_seed(0)
    decoder = StridedDecoder(1, 1, width=16, depth=1, upscale=1).train()
    canvas = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(decoder(canvas)[2:3], decoder(canvas[2:3]))


def test_its_sizes_are_the_authors() -> None:
    """Counted by hand, and in their code: at width 128 with two blocks."""
    decoder = StridedDecoder(1, 1, width=128, depth=2, upscale=1)
    convolutions = [1 * 16, 128 * 16, 2 * (128 * 9 + 128), 2 * 128 * 16]  # inputs x pixels of a filter
    norms = 2 * 128 * (2 + 2 * 2 + 2)
    expected = 128 * sum(convolutions) + norms + 128 + 1
    assert sum(p.numel() for p in decoder.parameters()) == expected == 1_118_337


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_on_white_the_convolutions_see_ink(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    white = StridedDecoder(3, 6, width=16, depth=1, upscale=1, background=1.0)
    black = StridedDecoder(3, 6, width=16, depth=1, upscale=1)
    black.load_state_dict(white.state_dict())
    canvas = torch.rand(2, 3, *size)
    torch.testing.assert_close(white(canvas), black(1 - canvas))
    padded = F.pad(canvas, (0, -size[1] % 4, 0, -size[0] % 4), value=1.0)
    torch.testing.assert_close(white(canvas), white(padded)[..., : size[0], : size[1]])
