"""AIR's windows against bilinear interpolation in plain NumPy."""

import numpy as np
import torch

from npdraw_dist.nn.baselines.spatial import box, cut, put


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
