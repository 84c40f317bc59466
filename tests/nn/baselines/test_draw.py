"""DRAW without attention, what its steps depend on, and its windows against plain NumPy loops.

Shapes: B images, C channels, H x W image, N filters an axis.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from npdraw_dist.config.load import resolve
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.baselines.draw import DRAW, Window, read, write
from tests.helpers.tiny_baselines import strokes, tiny_baseline

HEIGHT, WIDTH, SIZE = 9, 12, 4


def test_the_canvas_is_the_sum_of_what_the_steps_write() -> None:
    """Step by step on the same noise; the first reads no more than the image and an empty canvas."""
    model = tiny_baseline("draw")
    assert isinstance(model, DRAW)
    x = strokes(2).float() / 255
    with torch.no_grad():
        steps = list(model.steps(x, torch.Generator().manual_seed(0)))
        canvas, decoder = model._start(2)
        for _, z, after in steps:
            decoder = model.decoder(z, decoder)
            canvas = canvas + model._write(decoder[0])
            torch.testing.assert_close(after, canvas)
    assert len(steps) == 3


def test_the_flags_of_the_paper_give_its_network() -> None:
    """Binarised MNIST in Gregor et al. 2015, table 3: T 64, 256 hidden units, z 100, read 2x2, write 5x5."""
    text = (Path(__file__).parents[3] / "docs" / "kinds.md").read_text()
    (line,) = (line for line in text.splitlines() if "--baseline.steps 64" in line)
    words = line.split()
    flags = {flag[2:]: value for flag, value in itertools.pairwise(words) if flag.startswith("--baseline.")}
    sizes = {name.removeprefix("baseline."): value for name, value in flags.items()}
    experiment = resolve("mnist", None, {"model": {"kind": "draw"}, "baseline": sizes})
    with torch.device("meta"):
        model = DRAW(BaselineSpec.of(experiment))
    assert model.spec.steps == 64
    assert (model.encoder.input_size, model.encoder.hidden_size) == (2 * 2 * 2 + 256, 256)
    assert (model.decoder.input_size, model.decoder.hidden_size) == (100, 256)
    assert model.posterior.out_features == 200
    assert model.patch.out_features == 25
    assert model.read_window is not None
    assert model.write_window is not None


def reference(raw: np.ndarray, size: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Filters of one image by the equations 19 to 26 of the paper, pixels counted from 1, and gamma."""
    x, y, log_variance, log_stride, log_gamma = raw
    centre_x, centre_y = (width + 1) / 2 * (x + 1), (height + 1) / 2 * (y + 1)
    stride = (max(height, width) - 1) / (size - 1) * np.exp(log_stride)
    rows, columns = np.zeros((size, height)), np.zeros((size, width))
    for i in range(1, size + 1):
        for filters, centre, length in ((rows, centre_y, height), (columns, centre_x, width)):
            mean = centre + (i - size / 2 - 0.5) * stride
            for place in range(1, length + 1):
                filters[i - 1, place - 1] = np.exp(-((place - mean) ** 2) / (2 * np.exp(log_variance)))
            filters[i - 1] /= filters[i - 1].sum()
    return rows, columns, float(np.exp(log_gamma))


@pytest.fixture
def raw() -> torch.Tensor:
    return 0.5 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def test_read_is_numpys(raw: torch.Tensor) -> None:
    image = torch.rand(3, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    found = read(image, Window.of(raw, SIZE, HEIGHT, WIDTH), SIZE)
    assert found.shape == (3, 2, SIZE, SIZE)
    for b in range(3):
        rows, columns, gamma = reference(raw[b].double().numpy(), SIZE, HEIGHT, WIDTH)
        for c in range(2):
            expected = gamma * rows @ image[b, c].double().numpy() @ columns.T
            np.testing.assert_allclose(found[b, c], expected, rtol=1e-4, atol=1e-5)


def test_write_is_numpys(raw: torch.Tensor) -> None:
    patch = torch.randn(3, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    found = write(patch, Window.of(raw, SIZE, HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert found.shape == (3, 2, HEIGHT, WIDTH)
    for b in range(3):
        rows, columns, gamma = reference(raw[b].double().numpy(), SIZE, HEIGHT, WIDTH)
        for c in range(2):
            expected = rows.T @ patch[b, c].double().numpy() @ columns / gamma
            np.testing.assert_allclose(found[b, c], expected, rtol=1e-4, atol=1e-5)


def test_a_sharp_window_over_the_whole_image_copies_it() -> None:
    """Centre 0, stride 1 and nearly no variance: filter i is pixel i, so reading and writing are exact."""
    raw = torch.tensor([[0.0, 0.0, -6.0, 0.0, 0.7]])
    window = Window.of(raw, 8, 8, 8)
    image = torch.rand(1, 1, 8, 8)
    patch = read(image, window, 8)
    torch.testing.assert_close(patch, image * np.exp(0.7), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(write(patch, window, 8, 8), image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(window.box(8), torch.tensor([[0.0, 0.0, 7.0]]))


def test_a_window_far_outside_reads_finite_numbers() -> None:
    raw = torch.tensor([[30.0, -30.0, -9.0, -4.0, 0.0]])
    found = read(torch.ones(1, 1, 8, 8), Window.of(raw, 3, 8, 8), 3)
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 1 + 1e-5
