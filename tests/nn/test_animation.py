"""The animations by their pixels, frame by frame."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.pages import LINE, OUTLINE
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps
from npdraw_dist.nn.animation import MAX_GIF_BYTES, generation_gif
from tests.helpers.pixels import Pixels, cell, enlarged, few_colours, gif_frames, margin_of, random_images

GRID = Grid(28, 28, 5, 5)


def drawing(channels: int, batch: int) -> tuple[torch.Tensor, PartSequence]:
    """Random drawings; the first ends early, and step 2 draws nothing in any of them."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 6)
    whether = torch.ones(shape, dtype=torch.bool)
    whether[:, 2] = False
    whether[0, 3:] = False
    where = torch.randint(GRID.places, shape, generator=generator)
    z = PartSequence(whether, where, torch.randint(9, shape, generator=generator))
    bank = few_colours(random_images(9, channels, GRID.patch, GRID.patch))
    return paste_steps(gather_parts(bank, z, GRID), z.where, GRID), z


def animated(
    steps: torch.Tensor, z: PartSequence, images: torch.Tensor | None = None, most: int = 40
) -> bytes:
    """The GIF of z on GRID. images: (B, T, C, H, W); None: the canvases."""
    sides = torch.full_like(z.where, GRID.patch)
    images = steps if images is None else images
    return generation_gif(steps, z.whether, GRID.corners[z.where], sides, images, most)


def written(path: Path, data: bytes) -> tuple[list[Pixels], list[int]]:
    path.write_bytes(data)
    return gif_frames(path)


def outlines(tile: Pixels) -> Pixels:
    return np.asarray(np.abs(tile - np.array(OUTLINE)).max(-1) <= 6)


@pytest.mark.parametrize(("channels", "tolerance"), [(1, 4), (3, 20)])
def test_generation_draws_part_by_part(tmp_path: Path, channels: int, tolerance: int) -> None:
    steps, z = drawing(channels, 3)
    decoded = few_colours(random_images(3, 6, channels, 28, 28))
    data = animated(steps, z, decoded)
    frames, durations = written(tmp_path / "generation.gif", data)
    assert len(frames) == 1 + 5 + 1
    assert durations[-1] > 4 * durations[1]
    assert durations[0] > 2 * durations[1]
    origin = (margin_of(frames[0], 3, 112), LINE)
    # Frame k holds the first k parts of each drawing; drawing 0 has two, and step 2 is passed over.
    for number, step in enumerate((None, 0, 1, 3, 4, 5, None)):
        for index in range(3):
            now = 5 if step is None or (index == 0 and number > 2) else step
            tile = cell(frames[number], 0, index, 112, origin)
            outlined = outlines(tile)
            assert outlined.any() == (step is not None and (index != 0 or number <= 2))
            if outlined.any():
                top, left = (4 * GRID.corners[z.where[index, now]]).tolist()
                rows, columns = np.nonzero(outlined)
                box = (rows.min(), columns.min(), rows.max(), columns.max())
                assert box == (top, left, min(top + 19, 111), min(left + 19, 111))
            rest = np.abs(tile - enlarged(steps[index, now], 4))[~outlined]
            assert rest.mean() < tolerance / 2
            assert np.quantile(rest, 0.99) <= tolerance
            image = enlarged(decoded[index, now], 4)
            assert np.abs(cell(frames[number], 1, index, 112, origin) - image).mean() < tolerance


@pytest.mark.parametrize(("most", "shown"), [(5, 5), (4, 3), (1, 1)])
def test_several_parts_a_frame_are_no_more_than_the_most_frames(
    tmp_path: Path, most: int, shown: int
) -> None:
    """Five parts in the longest drawing: one, two, three or five a frame, each outlined once."""
    _, z = drawing(1, 3)
    steps = torch.zeros(3, 6, 1, 28, 28)
    data = animated(steps, z, most=most)
    frames, _ = written(tmp_path / "few.gif", data)
    assert len(frames) == shown + 2
    origin = (margin_of(frames[0], 3, 112), LINE)
    at_once = -(-5 // most)
    for number in range(shown):
        tile = cell(frames[number + 1], 0, 1, 112, origin)
        drawn = [step for step in range(6) if step != 2][number * at_once :][:at_once]
        expected = np.zeros((112, 112), dtype=bool)
        width = 2 if at_once == 1 else 1
        for top, left in (4 * GRID.corners[z.where[1, drawn]]).tolist():
            box = np.ones((min(20, 112 - top), min(20, 112 - left)), dtype=bool)
            box[width:-width, width:-width] = False
            expected[top : top + 20, left : left + 20] |= box
        np.testing.assert_array_equal(outlines(tile), expected)


@pytest.mark.parametrize(("channels", "background"), [(1, 0.0), (3, 1.0)])
def test_the_background_of_the_drawing_keeps_its_colour(
    tmp_path: Path, channels: int, background: float
) -> None:
    """Photographs of many colours on black or white, two colours that a palette of their pixels may lack."""
    where = torch.arange(9)
    steps = torch.full((1, 9, channels, 28, 28), background)
    steps[..., 5:25, 5:25] = random_images(1, 9, channels, 20, 20)
    images = steps + 0.01 * torch.rand(steps.shape) * (1 - 2 * background)
    images[..., :5] = background
    data = animated(steps, PartSequence(where[None] >= 0, where[None], where[None]), images)
    frames, _ = written(tmp_path / "background.gif", data)
    assert len(frames) == 11
    for frame in frames:
        for row in range(2):
            left = cell(frame, row, 0, 112, (margin_of(frame, 1, 112), LINE))[84:, :20]
            assert (left == round(255 * background)).all()


def test_windows_of_any_side_are_outlined_where_they_lie_within(tmp_path: Path) -> None:
    """One step a drawing: a window inside, one that hangs over on all sides, one far outside."""
    blank = torch.zeros(3, 1, 1, 28, 28)
    corners = torch.tensor([[[4, 6]], [[-3, -2]], [[60, 60]]])
    sides = torch.tensor([[9], [40], [5]])
    whether = torch.ones(3, 1, dtype=torch.bool)
    data = generation_gif(blank, whether, corners, sides, blank)
    frames, _ = written(tmp_path / "windows.gif", data)
    origin = (margin_of(frames[1], 3, 112), LINE)
    boxes = []
    for index in range(3):
        rows, columns = np.nonzero(outlines(cell(frames[1], 0, index, 112, origin)))
        boxes.append((rows.min(), columns.min(), rows.max(), columns.max()) if len(rows) else None)
    assert boxes == [(16, 24, 16 + 35, 24 + 35), (0, 0, 111, 111), None]


def test_generation_of_empty_drawings_is_the_finished_frame() -> None:
    blank = torch.zeros(2, 3, 1, 28, 28)
    nowhere = torch.zeros(2, 3, dtype=torch.int64)
    data = animated(blank, PartSequence(nowhere.bool(), nowhere, nowhere))
    with Image.open(io.BytesIO(data)) as found:
        assert getattr(found, "n_frames", 1) == 1


@pytest.mark.slow
def test_generation_stays_small_on_the_worst_data() -> None:
    """Noise in colour, in which every pixel of every frame is another."""
    steps, images = random_images(12, 64, 3, 32, 32), random_images(12, 64, 3, 64, 64)
    corners = Grid(32, 32, 4, 4).corners.expand(12, -1, -1)
    sides = torch.full((12, 64), 4)
    data = generation_gif(steps, sides > 0, corners, sides, images)
    assert len(data) <= MAX_GIF_BYTES
    with Image.open(io.BytesIO(data)) as found:
        assert 16 <= getattr(found, "n_frames", 1) - 2 <= 40


def test_the_last_frame_of_a_grey_generation_is_exact(tmp_path: Path) -> None:
    z = PartSequence(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 8]]), torch.tensor([[0, 0]]))
    steps = paste_steps(random_images(1, 2, 1, 5, 5), z.where, GRID)
    image = torch.arange(784).view(1, 1, 28, 28) % 256 / 255  # every grey
    data = animated(steps, z, image[:, None].expand(-1, 2, -1, -1, -1))
    frames, _ = written(tmp_path / "g.gif", data)
    for frame in (frames[0], frames[-1]):
        np.testing.assert_array_equal(frame[-116:-4, -116:-4], enlarged(image[0], 4))
        np.testing.assert_array_equal(frame[-232:-120, -116:-4], enlarged(steps[0, -1], 4))
