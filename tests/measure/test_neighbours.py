"""The nearest training images against a brute-force search."""

import numpy as np
import pytest
import torch

from npdraw_dist.measure import neighbours as module
from npdraw_dist.measure.neighbours import neighbours


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16)])
@pytest.mark.parametrize("at_once", [5000, 8 << 20])
def test_the_nearest_of_all_blocks_is_found(
    shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
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


def test_a_copy_of_a_training_image_is_at_distance_zero() -> None:
    images = random_bytes(40, 3, 8, 8)
    found = neighbours(images[[7, 31]] / 255, [images], chosen=2, seed=0)
    assert torch.equal(found.nearest, images[[7, 31]])
    np.testing.assert_allclose(found.distance.numpy(), 0, atol=1e-3)


def test_the_chosen_images_are_of_all_blocks_and_of_the_seed() -> None:
    """The pixel is the number of the image. Each image is as often chosen as any other."""
    images = torch.arange(90, dtype=torch.uint8).view(90, 1, 1, 1)
    sample = torch.zeros(1, 1, 1, 1)

    def chosen(seed: int) -> list[int]:
        return [int(x) for x in neighbours(sample, images.split(30), 16, seed).chosen.flatten()]

    drawn = [chosen(seed) for seed in range(300)]
    assert all(len(set(found)) == 16 for found in drawn)
    assert drawn[0] == chosen(0) != drawn[1]
    counts = np.bincount(np.concatenate(drawn), minlength=90)
    share = counts.reshape(3, 30).sum(1) / counts.sum()
    np.testing.assert_allclose(share, 1 / 3, atol=0.03)
    assert counts.min() > 20  # 53 on average
    assert len(neighbours(sample, [images[:5]], 16, 0).chosen) == 5


def test_without_images_there_is_no_neighbour() -> None:
    with pytest.raises(ValueError, match="no image"):
        neighbours(torch.zeros(1, 1, 2, 2), [], 3, 0)
