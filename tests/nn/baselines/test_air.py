"""AIR's presence as a stopping time, by enumeration, and its windows against bilinear interpolation in NumPy.

n objects of at most T.
"""

import itertools

import numpy as np
import torch

from npdraw_dist.nn.baselines.air import AIR, box, cut, put, stopping_log_prob
from tests.helpers.tiny_baselines import strokes, tiny_baseline


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
    assert isinstance(model, AIR)
    count = model.generate(20_000, torch.Generator().manual_seed(0), 1.0).codes["count"]
    shares = torch.bincount(count, minlength=4) / 20_000
    torch.testing.assert_close(shares, stopping_log_prob(model.prior_presence).exp(), atol=0.015, rtol=0)


def test_the_sum_over_n_has_the_gradient_of_the_expectation() -> None:
    """d/d logits of the exact sum = the score function's estimate over many drawn n, on one fixed path."""
    torch.manual_seed(0)
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(4, dtype=torch.float64)
    (stopping_log_prob(logits).exp() * reward).sum().backward()
    assert logits.grad is not None
    log_q = stopping_log_prob(logits)
    n = torch.multinomial(log_q.exp().detach(), 200_000, replacement=True)
    (score,) = torch.autograd.grad((log_q[n] * reward[n]).mean(), logits)
    torch.testing.assert_close(logits.grad, score, atol=0.01, rtol=0)


def test_nothing_is_drawn_beyond_n() -> None:
    model = tiny_baseline("air")
    assert isinstance(model, AIR)
    with torch.no_grad():
        model.prior_presence.fill_(-50.0)
    drawing = model.sample_trace(4, torch.Generator().manual_seed(0))
    assert not drawing.drawn.any()
    empty = model.likelihood.mean(model.background.detach().expand(4, -1, 6, 6))
    torch.testing.assert_close(drawing.images, empty)


def test_describe_counts_objects() -> None:
    model = tiny_baseline("air")
    assert isinstance(model, AIR)
    x = strokes(3).float() / 255
    with torch.no_grad():
        for bias, expected in ((60.0, 3.0), (-60.0, 0.0)):
            model.presence.bias.fill_(bias)
            count = model.describe(x)["active_objects"]
            torch.testing.assert_close(count, torch.full((3,), expected), atol=1e-4, rtol=0)


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


def test_the_whole_image_is_its_own_window() -> None:
    image = torch.rand(1, 3, 6, 6)
    whole = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(cut(image, whole, 6), image)
    torch.testing.assert_close(put(image, whole, 6, 6), image)
