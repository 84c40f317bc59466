"""Distances between sets of features against NumPy and SciPy, nearest images against brute force.

Shapes: N real, M generated, D features.
"""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from npdraw_dist.measure import distances
from npdraw_dist.measure.distances import (
    frechet_distance,
    kernel_distance,
    neighbours,
    precision_recall,
    require_enough,
)
from npdraw_dist.system.errors import UserError


def sets(n: int = 60, m: int = 80, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator) @ mix + 0.3


def test_frechet_is_scipys() -> None:
    real, generated = (part.double().numpy() for part in sets())
    covariances = [np.cov(part, rowvar=False) for part in (real, generated)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(real.mean(0) - generated.mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*sets()) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_the_unbiased_mmd_of_a_cubic_kernel() -> None:
    """With as many of each as a subset takes, every subset is the whole set."""
    real, generated = sets(60, 60)
    x, y = (part.double().numpy() for part in (real, generated))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum((kernel(a, a).sum() - np.trace(kernel(a, a))) / (60 * 59) for a in (x, y))
    expected = within - 2 * kernel(x, y).mean()
    mean, deviation = kernel_distance(real, generated, 0)
    assert mean == pytest.approx(expected, rel=1e-4)
    assert deviation == pytest.approx(0, abs=1e-3 * abs(mean))


def test_kernel_distance_is_seeded_and_leaves_torchs_stream_alone() -> None:
    real, generated = sets(60, 80)
    before = torch.random.get_rng_state()
    first = kernel_distance(real, generated, 3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(1)
    assert kernel_distance(real, generated, 3) == first != kernel_distance(real, generated, 4)


def test_precision_and_recall_by_brute_force() -> None:
    """A generated point is precise where it lies within a real one's third neighbour, and the reverse."""
    real, generated = sets(40, 50, 2)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(centres - c, axis=1))[3] for c in centres]
        inside = [
            any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points
        ]
        return float(np.mean(inside))

    x, y = real.double().numpy(), generated.double().numpy()
    precision, recall = precision_recall(real.double(), generated.double())
    assert precision == pytest.approx(covered(y, x))
    assert recall == pytest.approx(covered(x, y))
    assert precision != recall


@pytest.mark.parametrize(
    ("real", "generated", "which"), [(5, 90, "5 real images"), (90, 4, "4 generated images")]
)
def test_too_few_for_a_covariance(real: int, generated: int, which: str) -> None:
    with pytest.raises(UserError, match=f"{which} are too few .* at least 6"):
        require_enough(real, generated, 5)
    with pytest.raises(UserError, match=which):
        frechet_distance(torch.rand(real, 5), torch.rand(generated, 5))
    require_enough(6, 6, 5)


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.uint8)


@pytest.mark.parametrize(("shape", "at_once"), [((1, 28, 28), 8 << 20), ((3, 16, 16), 5000)])
def test_the_nearest_of_all_blocks_is_found(
    shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "AT_ONCE", at_once)
    images = random_bytes(230, *shape)
    near = images[[3, 100, 101, 229]]  # of three blocks
    noise = 0.2 * torch.rand(near.shape, generator=torch.Generator().manual_seed(1))
    samples = torch.cat([near / 255 * 0.8 + noise, torch.rand(3, *shape)])
    found = neighbours(samples, images.split(101), chosen=6, seed=0)
    pixels = images.numpy().astype(np.float64) / 255
    expected = [np.sqrt(((pixels - x.numpy()) ** 2).mean((1, 2, 3))) for x in samples]
    index = [int(distances.argmin()) for distances in expected]
    assert index[:4] == [3, 100, 101, 229]
    assert torch.equal(found.nearest, images[index])
    np.testing.assert_allclose(found.distance.numpy(), [d.min() for d in expected], rtol=1e-4, atol=1e-6)
    assert found.searched == 230


def test_the_chosen_images_are_of_all_blocks_and_of_the_seed() -> None:
    """The pixel is the number of the image. Each image is as often chosen as any other."""
    images = torch.arange(90, dtype=torch.uint8).view(90, 1, 1, 1)
    sample = torch.zeros(1, 1, 1, 1)

    def chosen(seed: int) -> list[int]:
        return [int(x) for x in neighbours(sample, images.split(30), 16, seed).chosen.flatten()]

    drawn = [chosen(seed) for seed in range(150)]
    assert all(len(set(found)) == 16 for found in drawn)
    assert drawn[0] == chosen(0) != drawn[1]
    counts = np.bincount(np.concatenate(drawn), minlength=90)
    share = counts.reshape(3, 30).sum(1) / counts.sum()
    np.testing.assert_allclose(share, 1 / 3, atol=0.03)
    assert counts.min() > 10  # 27 on average
    assert len(neighbours(sample, [images[:5]], 16, 0).chosen) == 5


def test_without_images_there_is_no_neighbour() -> None:
    with pytest.raises(ValueError, match="no real image"):
        neighbours(torch.zeros(1, 1, 2, 2), [], 3, 0)
