"""The nearest centroid against exact integers, where float32 cannot tell."""

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from npdraw_dist.bank.search import STEPS_PER_PIXEL_UNIT, Assigner, quantized


class Wrong:
    """An index whose float32 errs as far as its bound allows: it swaps the two nearest of close calls."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self._index = faiss.IndexFlatL2(centroids.shape[1])
        self._index.add(centroids)

    def search(self, patches: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        squared, found = self._index.search(patches, k)
        swap = squared[:, 1] - squared[:, 0] < 1
        found[swap] = found[swap, ::-1]
        return squared, found


def flat(centroids: NDArray[np.float32]) -> faiss.IndexFlatL2:
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return index


def exact(patches: NDArray[np.uint8], centroids: NDArray[np.float32]) -> NDArray[np.object_]:
    """(n, K): squared distances as Python integers, in units of 2^-32 of a squared grey value."""
    steps = (centroids.astype(np.float64) * STEPS_PER_PIXEL_UNIT).astype(np.int64).astype(object)
    apart = patches.astype(object)[:, None] * int(STEPS_PER_PIXEL_UNIT) - steps
    return (apart**2).sum(-1)


@pytest.mark.parametrize("index", [flat, Wrong])
@pytest.mark.parametrize("dimensions", [9, 25, 48])
def test_ties_and_near_ties(dimensions: int, index: Callable[[NDArray[np.float32]], object]) -> None:
    rng = np.random.default_rng(dimensions)
    patches = rng.integers(0, 256, (300, dimensions)).astype(np.uint8)
    centroids = patches[:12].astype(np.float64)
    centroids[3] = centroids[8]  # equal
    for pair in (4, 6):  # a patch halfway between two centroids, and then all but halfway
        centroids[pair + 1] = 2.0 * patches[pair + 100] - centroids[pair]
    centroids[7, 0] += 1e-4
    near = quantized(centroids)
    nearest, worst, distance = Assigner(near, index(near))(patches.astype(np.float32))
    squared = exact(patches, near)
    np.testing.assert_array_equal(nearest, squared.argmin(1))
    least = squared.min(1)
    assert worst == least.argmax()
    assert distance == pytest.approx(float(least.max()) / STEPS_PER_PIXEL_UNIT**2, rel=1e-12)


def test_the_result_of_a_patch_is_its_own() -> None:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (9000, 25)).astype(np.float32)
    centroids = quantized(rng.random((40, 25)) * 255)
    assign = Assigner(centroids, flat(centroids))
    whole = assign(patches)[0]
    np.testing.assert_array_equal(np.concatenate([assign(part)[0] for part in np.split(patches, 9)]), whole)
    assert len(np.unique(whole)) > 1


def test_one_centroid() -> None:
    centroids = quantized(np.full((1, 4), 10.5))
    nearest, worst, distance = Assigner(centroids, flat(centroids))(np.array([[10] * 4, [0] * 4], np.float32))
    assert nearest.tolist() == [0, 0]
    assert (worst, distance) == (1, 4 * 10.5**2)


def test_quantized_is_float32_without_loss() -> None:
    values = np.array([[0.1, 254.9999999, -20.3, 400.00001]])
    steps = quantized(values).astype(np.float64) * STEPS_PER_PIXEL_UNIT
    np.testing.assert_array_equal(steps, np.rint(steps))
    np.testing.assert_allclose(quantized(values), values, atol=2**-15)
