"""Moves of training images: exact where they are simple, small, seeded, and none where none is asked for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.pipeline.stage_job import moved


def run(images: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    values = {"augmented": 1.0} | settings
    return moved(images, TrainConfig(**values), torch.Generator().manual_seed(seed))


def dot(row: int, column: int, height: int = 21, width: int = 21) -> Tensor:
    image = torch.zeros(64, 1, height, width, dtype=torch.uint8)
    image[:, :, row, column] = 255
    return image


def centres(images: Tensor) -> Tensor:
    """(B, 2): the centre of mass (row, column) of each image."""
    weight = images[:, 0].double() / images.double().sum((1, 2, 3))[:, None, None]
    rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
    return torch.stack([(weight.sum(2) * rows).sum(1), (weight.sum(1) * columns).sum(1)], 1)


def test_no_limit_moves_nothing() -> None:
    images = torch.randint(256, (8, 3, 9, 12)).to(torch.uint8)
    assert torch.equal(run(images), images)


@pytest.mark.parametrize("size", [(21, 21), (15, 30)])
def test_a_shift_stays_within_its_pixels(size: tuple[int, int]) -> None:
    middle = size[0] // 2, size[1] // 2
    shifts = centres(run(dot(*middle, *size), shift=2)) - torch.tensor(middle)
    assert float(shifts.abs().max()) <= 2.01
    assert (shifts.abs().amax(0) > 1.5).all()
    assert (shifts.amin(0) < -1).all()
    assert (shifts.amax(0) > 1).all()


@pytest.mark.parametrize("size", [(21, 21), (15, 31)])
def test_a_rotation_keeps_distances_and_its_angle(size: tuple[int, int]) -> None:
    row, column = size[0] // 2, size[1] // 2
    places = centres(run(dot(row, column + 6, *size), rotate=30)) - torch.tensor([row, column])
    assert (places.norm(dim=1) - 6).abs().max() < 0.3
    angle = torch.atan2(places[:, 0], places[:, 1]).rad2deg()
    assert float(angle.abs().max()) < 33
    assert float(angle.max()) > 20
    assert float(angle.min()) < -20


def test_stretching_and_shear_keep_the_centre() -> None:
    far = centres(run(dot(10, 16), stretch=0.3)) - 10
    assert float(far[:, 0].abs().max()) < 0.1
    assert 6 / 1.42 < float(far[:, 1].min()) < 5
    assert 7 < float(far[:, 1].max()) < 6 * 1.42
    leaning = centres(run(dot(16, 10), shear=0.5)) - 10
    assert float((leaning[:, 0] - 6).abs().max()) < 0.3
    assert 2 < float(leaning[:, 1].abs().max()) < 3.4


def test_a_share_of_the_images_moves_by_the_seed() -> None:
    images = dot(10, 10)
    a, b, other = (
        run(images, augmented=0.5, shift=3),
        run(images, augmented=0.5, shift=3),
        run(images, 1, shift=3),
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    changed = int((a != images).flatten(1).any(1).sum())
    assert 16 < changed < 48


def test_colour_channels_move_together() -> None:
    grey = torch.randint(256, (4, 1, 8, 8)).to(torch.uint8)
    out = run(grey.expand(-1, 3, -1, -1), rotate=20, shift=1)
    assert torch.equal(out[:, :1].expand(-1, 3, -1, -1), out)


MOVES: dict[str, Any] = {"shift": 4, "rotate": 30, "stretch": 0.3, "shear": 0.3}


def test_on_white_white_comes_in_over_the_edge() -> None:
    settings = TrainConfig(augmented=1.0, **MOVES)
    white = torch.full((16, 3, 12, 12), 255, dtype=torch.uint8)
    assert (moved(white, settings, torch.Generator().manual_seed(0), 1.0) == 255).all()
    assert (moved(white, settings, torch.Generator().manual_seed(0)) == 0).any()


def test_the_negative_on_white_moves_alike() -> None:
    images = torch.randint(256, (16, 3, 9, 12)).to(torch.uint8)
    settings = TrainConfig(augmented=0.7, **MOVES)
    black = moved(images, settings, torch.Generator().manual_seed(0))
    white = moved(255 - images, settings, torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(white, 255 - black)


@pytest.mark.parametrize("size", [(9, 12), (10, 7)])
def test_a_mirrored_image_is_exact_and_half_of_them_are(size: tuple[int, int]) -> None:
    images = torch.randint(256, (64, 3, *size)).to(torch.uint8)
    new = run(images, mirror=0.5)
    mirrored = (new == images.flip(3)).flatten(1).all(1)
    assert ((new == images).flatten(1).all(1) ^ mirrored).all()
    assert 16 < int(mirrored.sum()) < 48


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_whole_pixels_are_shifted_exactly(background: float) -> None:
    images = torch.randint(256, (64, 3, 10, 12)).to(torch.uint8)
    settings = TrainConfig(augmented=1, shift=2)
    new = moved(images, settings, torch.Generator().manual_seed(0), background)
    framed = F.pad(images, (2, 2, 2, 2), value=255 * background)
    found = {}
    for down in range(5):
        for right in range(5):
            same = (new == framed[:, :, down : down + 10, right : right + 12]).flatten(1).all(1)
            found[down, right] = int(same.sum())
    assert sum(found.values()) == 64
    assert sum(number > 0 for number in found.values()) > 12


def test_without_a_mirror_no_noise_is_drawn_for_it() -> None:
    images = torch.randint(256, (4, 1, 9, 9)).to(torch.uint8)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    moved(images, TrainConfig(augmented=1, shift=1), generators[0])
    torch.rand(7 * 4, generator=generators[1])  # chosen, angle, two stretches, slope, two shifts
    assert torch.equal(*(torch.rand(3, generator=generator) for generator in generators))
