"""DRAW and AIR: their windows against plain NumPy loops, and AIR's presence by enumeration.

Shapes: B images, C channels, H x W image, N filters an axis; n objects of at most T.
"""

import itertools

import numpy as np
import torch

from npdraw_dist.baselines.air import box, cut, put, stopping_log_prob
from npdraw_dist.baselines.draw import Window, read, write
from tests.helpers.tiny_baselines import strokes_in_01, tiny_baseline
from tests.helpers.tiny_models import seeded

HEIGHT, WIDTH, SIZE = 9, 12, 4


def test_the_canvas_is_the_sum_of_what_the_steps_write() -> None:
    """Step by step on the same noise; the first reads no more than the image and an empty canvas."""
    model, x = tiny_baseline("draw"), strokes_in_01(2)
    with torch.no_grad():
        steps = list(model.steps(x, seeded()))
        canvas, decoder = model._start(2)
        for _, z, after in steps:
            decoder = model.decoder(z, decoder)
            canvas = canvas + model._write(decoder[0])
            torch.testing.assert_close(after, canvas)
    assert len(steps) == 3


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


def test_read_and_write_are_numpys() -> None:
    raw = 0.5 * torch.randn(3, 5, generator=seeded())
    image = torch.rand(3, 2, HEIGHT, WIDTH, generator=seeded(1))
    patch = torch.randn(3, 2, SIZE, SIZE, generator=seeded(2))
    window = Window.of(raw, SIZE, HEIGHT, WIDTH)
    whole = Window.of(torch.tensor([[0.0, 0.0, -6.0, 0.0, 0.7]]), 8, 8, 8)
    torch.testing.assert_close(whole.box(8), torch.tensor([[0.0, 0.0, 7.0]]))
    taken, written = read(image, window, SIZE), write(patch, window, HEIGHT, WIDTH)
    for b in range(3):
        rows, columns, gamma = reference(raw[b].double().numpy(), SIZE, HEIGHT, WIDTH)
        for c in range(2):
            expected = gamma * rows @ image[b, c].double().numpy() @ columns.T
            np.testing.assert_allclose(taken[b, c], expected, rtol=1e-4, atol=1e-5)
            expected = rows.T @ patch[b, c].double().numpy() @ columns / gamma
            np.testing.assert_allclose(written[b, c], expected, rtol=1e-4, atol=1e-5)


def test_presence_is_a_stopping_distribution() -> None:
    """Against all 2^T strings of presence: after a 0 only zeros; the chances are those of n."""
    logits = torch.tensor([[1.3, -0.4, 0.2], [-30.0, 50.0, 3.0]], dtype=torch.float64)
    found = stopping_log_prob(logits).exp().numpy()
    on = 1 / (1 + np.exp(-logits.numpy()))
    for b in range(2):
        chances = np.zeros(4)
        for bits in itertools.product((0, 1), repeat=3):
            chance, alive = 1.0, True
            for t, bit in enumerate(bits):
                chance *= (on[b, t] if bit else 1 - on[b, t]) if alive else float(not bit)
                alive = alive and bool(bit)
            chances[sum(bits)] += chance
        np.testing.assert_allclose(found[b], chances, atol=1e-12)
        assert abs(found[b].sum() - 1) < 1e-12


def test_drawn_counts_follow_the_stopping_distribution() -> None:
    model = tiny_baseline("air", amount=0.5)
    count = model.generate(20_000, seeded(), 1.0).codes["count"]
    shares = torch.bincount(count, minlength=4) / 20_000
    torch.testing.assert_close(shares, stopping_log_prob(model.prior_presence).exp(), atol=0.015, rtol=0)


def test_objects_are_counted_and_nothing_is_drawn_beyond_n() -> None:
    model, x = tiny_baseline("air"), strokes_in_01(3)
    with torch.no_grad():
        for bias, expected in ((60.0, 3.0), (-60.0, 0.0)):
            model.presence.bias.fill_(bias)
            count = model.describe(x)["active_objects"]
            torch.testing.assert_close(count, torch.full((3,), expected), atol=1e-4, rtol=0)
        model.prior_presence.fill_(-50.0)
    drawing = model.sample_trace(4, generator=seeded())
    assert not drawing.drawn.any()
    empty = model.likelihood.mean(model.background.detach().expand(4, -1, 6, 6))
    torch.testing.assert_close(drawing.images, empty)


def bilinear(image: np.ndarray, row: float, column: float) -> float:
    """The value at (row, column), pixel centres at whole numbers, zero outside."""
    total = 0.0
    for r in (int(np.floor(row)), int(np.floor(row)) + 1):
        for c in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= r < image.shape[0] and 0 <= c < image.shape[1]:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * image[r, c]
    return total


def test_cut_is_numpys() -> None:
    height, width, size = 7, 10, 4
    image = torch.rand(2, 1, height, width)
    windows = torch.tensor([[0.4, 0.3, -0.2], [0.9, -0.5, 0.6]])
    found = cut(image, windows, size)
    for b, (scale, x, y) in enumerate(windows.tolist()):
        for i in range(size):
            for j in range(size):
                u, v = ((2 * k + 1) / size - 1 for k in (j, i))  # centre of the sample in the window
                column = ((scale * u + x + 1) * width - 1) / 2
                row = ((scale * v + y + 1) * height - 1) / 2
                expected = bilinear(image[b, 0].numpy(), row, column)
                np.testing.assert_allclose(float(found[b, 0, i, j]), expected, atol=1e-5)


def test_put_is_numpys_and_zero_outside() -> None:
    side, size = 12, 5
    glimpse = torch.rand(1, 1, size, size)
    window = torch.tensor([[0.5, 0.25, -0.25]])
    found = put(glimpse, window, side, side)
    for i in range(side):
        for j in range(side):
            u, v = ((2 * k + 1) / side - 1 for k in (j, i))
            column = (((u - 0.25) / 0.5 + 1) * size - 1) / 2
            row = (((v + 0.25) / 0.5 + 1) * size - 1) / 2
            expected = bilinear(glimpse[0, 0].numpy(), row, column)
            np.testing.assert_allclose(float(found[0, 0, i, j]), expected, atol=1e-5)
    top, left, length = box(window, side, side)[0].tolist()
    assert (top, left, length) == (1.5, 4.5, 6.0)
    outside = torch.ones(side, side, dtype=torch.bool)
    outside[1:9, 4:12] = False
    assert found[0, 0][outside].abs().max() == 0
