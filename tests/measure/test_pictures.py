"""The pictures by their pixels: what was given is what is seen."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps
from npdraw_dist.measure import pictures
from npdraw_dist.measure.pictures import GUTTER, LINE, MAX_GIF_BYTES, OUTLINE

Pixels = NDArray[np.int64]


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def few_colours(images: torch.Tensor) -> torch.Tensor:
    """Five levels a channel, so that 256 colours hold all that a GIF shows."""
    return (images * 4).round() / 4


def rgb(picture: Image.Image | Path) -> Pixels:
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return np.asarray(opened.convert("RGB")).astype(np.int64)
    return np.asarray(picture.convert("RGB")).astype(np.int64)


def enlarged(image: torch.Tensor, factor: int) -> Pixels:
    """(C, H, W) -> what its tile must be, by a Kronecker product."""
    grey = np.round(image.numpy() * 255).astype(np.int64)
    planes = [np.kron(plane, np.ones((factor, factor), dtype=np.int64)) for plane in grey]
    return np.stack(planes * (3 // len(planes)), -1)


def cell(page: Pixels, row: int, column: int, side: int, origin: tuple[int, int] = (0, 0)) -> Pixels:
    """The tile of a sheet whose upper-left corner is at `origin` (x, y)."""
    top = origin[1] + GUTTER + row * (side + GUTTER)
    left = origin[0] + GUTTER + column * (side + GUTTER)
    return page[top : top + side, left : left + side]


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 28, 4), (3, 32, 4), (3, 64, 2)])
def test_sheet_shows_each_image_enlarged(channels: int, side: int, factor: int) -> None:
    images = random_images(5, channels, side, side)
    page = rgb(pictures.sheet(images, 3))
    tile = side * factor
    assert page.shape == (2 * (tile + GUTTER) + GUTTER, 3 * (tile + GUTTER) + GUTTER, 3)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(cell(page, index // 3, index % 3, tile), enlarged(image, factor))
    assert (page[:GUTTER] == pictures.PAPER).all()


def test_sheet_captions_lie_below_the_tiles() -> None:
    images = random_images(2, 1, 5, 5)
    page = rgb(pictures.sheet(images, 2, tile=50, captions=["12", ""]))
    assert page.shape[0] == 50 + LINE + 2 * GUTTER
    np.testing.assert_array_equal(cell(page, 0, 1, 50), enlarged(images[1], 10))
    below = page[GUTTER + 50 : GUTTER + 50 + LINE]
    assert below[:, :50].min() < 150
    assert (below[:, 60:] == pictures.PAPER).all()


@pytest.mark.parametrize("sizes", [None, [3, 999, 1_250, 47_000, 2_000_000, 0, 1]])
def test_bank_sheet_keeps_the_order(tmp_path: Path, sizes: list[int] | None) -> None:
    bank = PartBank(random_images(7, 3, 4, 4))
    pictures.save_bank(tmp_path / "bank.png", bank, sizes)
    page = rgb(tmp_path / "bank.png")
    np.testing.assert_array_equal(cell(page, 0, 1, 52), enlarged(bank.parts[1], 13))
    assert page.shape[1] == 4 * (52 + GUTTER) + GUTTER
    assert page.shape[0] == 2 * (52 + GUTTER + (LINE if sizes else 0)) + GUTTER


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1250, "1.2k"), (47_900, "47k"), (2_000_000, "2.0M")]
)
def test_short_numbers(number: int, text: str) -> None:
    assert pictures._short(number) == text


def test_parse_preview_has_image_canvas_and_difference(tmp_path: Path) -> None:
    canvases = random_images(20, 3, 32, 32)
    images = torch.nn.functional.interpolate(canvases, scale_factor=2.0)
    canvases = (canvases - 0.25).clamp(0)
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    margin = page.shape[1] - (16 * (128 + GUTTER) + GUTTER)
    assert 20 < margin < 120
    assert page[:, :margin].min() < 150, "no labels"
    seen = torch.nn.functional.avg_pool2d(images, 2)
    for column in (0, 15):
        for row, image in enumerate([images, canvases, (seen - canvases).abs()]):
            expected = enlarged(image[column], 2 if row == 0 else 4)
            np.testing.assert_array_equal(cell(page, row, column, 128, (margin, 0)), expected)


def test_samples_are_pairs(tmp_path: Path) -> None:
    images, canvases = random_images(5, 1, 28, 28), random_images(5, 1, 28, 28).flip(0)
    pictures.save_samples(tmp_path / "samples.png", images, canvases)
    page = rgb(tmp_path / "samples.png")
    width, height, gutter = 2 * 112 + 3, 112 + 2, 2 * GUTTER
    assert page.shape[:2] == (LINE + 2 * (height + gutter) + gutter, 3 * (width + gutter) + gutter)
    top, left = LINE + gutter + (height + gutter) + 1, gutter + 1  # pair 3: second row, first column
    np.testing.assert_array_equal(page[top : top + 112, left : left + 112], enlarged(canvases[3], 4))
    np.testing.assert_array_equal(page[top : top + 112, left + 113 : left + 225], enlarged(images[3], 4))


def test_samples_without_canvases_are_a_grid(tmp_path: Path) -> None:
    images = random_images(5, 1, 28, 28)
    pictures.save_samples(tmp_path / "samples.png", images, None)
    page = rgb(tmp_path / "samples.png")
    for index, image in enumerate(images):
        np.testing.assert_array_equal(cell(page, index // 3, index % 3, 112), enlarged(image, 4))


def test_rows_of_samples_carry_their_names(tmp_path: Path) -> None:
    rows = {"VAE 10%": random_images(3, 1, 28, 28), "DRAW 10%": random_images(3, 1, 28, 28).flip(0)}
    pictures.save_rows(tmp_path / "rows.png", rows)
    page = rgb(tmp_path / "rows.png")
    margin = page.shape[1] - (3 * (112 + GUTTER) + GUTTER)
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(images):
            np.testing.assert_array_equal(cell(page, row, column, 112, (margin, 0)), enlarged(image, 4))
        label = page[row * 116 : row * 116 + 112, : margin - GUTTER]
        assert label.min() < 150


def drawing(channels: int, batch: int, grid: Grid) -> tuple[torch.Tensor, PartSequence]:
    """Random drawings of which the first ends early, and step 2 draws nothing anywhere."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 6)
    whether = torch.ones(shape, dtype=torch.bool)
    whether[:, 2] = False
    whether[0, 3:] = False
    where = torch.randint(grid.places, shape, generator=generator)
    z = PartSequence(whether, where, torch.randint(9, shape, generator=generator))
    bank = few_colours(random_images(9, channels, grid.patch, grid.patch))
    return paste_steps(gather_parts(bank, z, grid), z.where, grid), z


def gif_frames(path: Path) -> tuple[list[Pixels], list[int]]:
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        frames, durations = [], []
        for frame in ImageSequence.Iterator(gif):
            frames.append(rgb(frame))
            durations.append(frame.info["duration"])
    return frames, durations


@pytest.mark.parametrize(("channels", "tolerance"), [(1, 4), (3, 20)])
@pytest.mark.parametrize("decoded_each_step", [False, True])
def test_generation_draws_step_by_step(
    tmp_path: Path, channels: int, tolerance: int, decoded_each_step: bool
) -> None:
    grid = Grid(28, 28, 5, 5)
    steps, z = drawing(channels, 3, grid)
    decoded = few_colours(random_images(3, 6, channels, 28, 28))
    images = decoded if decoded_each_step else decoded[:, -1]
    path = tmp_path / "generation.gif"
    path.write_bytes(pictures.generation_gif(steps, z.whether, grid.corners[z.where], 5, images))
    frames, durations = gif_frames(path)
    assert len(frames) == 5 + 1
    assert durations[-1] > 4 * durations[0]
    margin = frames[0].shape[1] - (3 * (112 + GUTTER) + GUTTER)
    origin = (margin, LINE)
    for index in range(3):
        canvas = cell(frames[-1], 0, index, 112, origin) - enlarged(steps[index, -1], 4)
        image = cell(frames[-1], 1, index, 112, origin) - enlarged(decoded[index, -1], 4)
        for difference in (canvas, image):
            assert np.abs(difference).mean() < tolerance / 2
            assert np.quantile(np.abs(difference), 0.99) <= tolerance
    # Frame 2 is step 3, as step 2 draws nothing: canvas of step 3, drawing 0 already finished.
    for index in range(3):
        tile = cell(frames[2], 0, index, 112, origin)
        outlined = np.abs(tile - np.array(OUTLINE)).max(-1) <= 6
        assert outlined.any() == (index != 0)
        if index:
            top, left = (4 * grid.corners[z.where[index, 3]]).tolist()
            rows, columns = np.nonzero(outlined)
            box = (rows.min(), columns.min(), rows.max(), columns.max())
            assert box == (top, left, min(top + 19, 111), min(left + 19, 111))
        rest = np.abs(tile - enlarged(steps[index, 3], 4))[~outlined]
        assert rest.mean() < tolerance / 2
    shown = cell(frames[0], 1, 1, 112, origin) - enlarged(decoded[1, 0 if decoded_each_step else -1], 4)
    assert np.abs(shown).mean() < tolerance / 2


def test_windows_of_any_side_are_outlined_where_they_lie_within(tmp_path: Path) -> None:
    """One step a drawing: a window inside, one that hangs over on all sides, one far outside."""
    blank = torch.zeros(3, 1, 1, 28, 28)
    corners = torch.tensor([[[4, 6]], [[-3, -2]], [[60, 60]]])
    sides = torch.tensor([[9], [40], [5]])
    path = tmp_path / "windows.gif"
    path.write_bytes(
        pictures.generation_gif(blank, torch.ones(3, 1, dtype=torch.bool), corners, sides, blank[:, 0])
    )
    frames, _ = gif_frames(path)
    margin = frames[0].shape[1] - (3 * (112 + GUTTER) + GUTTER)
    boxes = []
    for index in range(3):
        tile = cell(frames[0], 0, index, 112, (margin, LINE))
        rows, columns = np.nonzero(np.abs(tile - np.array(OUTLINE)).max(-1) <= 6)
        boxes.append((rows.min(), columns.min(), rows.max(), columns.max()) if len(rows) else None)
    assert boxes == [(16, 24, 16 + 35, 24 + 35), (0, 0, 111, 111), None]


def test_generation_of_empty_drawings_is_the_finished_frame(tmp_path: Path) -> None:
    blank = torch.zeros(2, 3, 1, 28, 28)
    nowhere = torch.zeros(2, 3, 2, dtype=torch.int64)
    path = tmp_path / "empty.gif"
    path.write_bytes(
        pictures.generation_gif(blank, torch.zeros(2, 3, dtype=torch.bool), nowhere, 5, blank[:, 0])
    )
    with Image.open(path) as gif:
        assert getattr(gif, "n_frames", 1) == 1


def test_generation_stays_small_on_the_worst_data(tmp_path: Path) -> None:
    grid = Grid(32, 32, 4, 4)
    z = PartSequence(
        torch.ones(12, 64, dtype=torch.bool), torch.arange(64).repeat(12, 1), torch.zeros(12, 64).long()
    )
    steps = paste_steps(random_images(12, 64, 3, 4, 4), z.where, grid)
    path = tmp_path / "noise.gif"
    path.write_bytes(
        pictures.generation_gif(steps, z.whether, grid.corners[z.where], 4, random_images(12, 64, 3, 64, 64))
    )
    assert path.stat().st_size <= MAX_GIF_BYTES
    frames, _ = gif_frames(path)
    assert len(frames) == 65


def test_curves_are_a_picture_with_lines(tmp_path: Path) -> None:
    table = {f"nll {i}": ([0.0, 1e4, 2e4], [3.0, 2.0, float("nan")]) for i in range(3)}
    pictures.save_curves(tmp_path / "curves.png", table)
    page = rgb(tmp_path / "curves.png")
    assert page.shape[:2] == (520, 900)
    blue = np.abs(page - np.array([31, 119, 180])).max(-1) < 30
    halves = [blue[:260, :450], blue[:260, 450:], blue[260:, :450], blue[260:, 450:]]
    assert [bool(half.any()) for half in halves] == [True, True, True, False]
    pictures.save_curves(tmp_path / "none.png", {})
    assert (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 64)])
def test_reconstructions_are_three_rows(tmp_path: Path, channels: int, side: int) -> None:
    images, decoded = random_images(20, channels, side, side), random_images(20, channels, side, side) / 2
    canvases = images[..., ::2, ::2].contiguous()
    pictures.save_reconstructions(tmp_path / "page.png", images, canvases, decoded)
    page = rgb(tmp_path / "page.png")
    tile = 112 if side == 28 else 128
    origin = (page.shape[1] - 16 * (tile + GUTTER) - GUTTER, 0)
    for row, (group, factor) in enumerate(
        ((images, tile // side), (canvases, 2 * tile // side), (decoded, tile // side))
    ):
        np.testing.assert_array_equal(cell(page, row, 15, tile, origin), enlarged(group[15], factor))
    assert page.shape[0] == 3 * (tile + GUTTER) + GUTTER


@pytest.mark.parametrize(("side", "canvas"), [(28, 28), (32, 32), (64, 32)])
def test_an_edit_frames_its_region_on_each_canvas(tmp_path: Path, side: int, canvas: int) -> None:
    grid = Grid(canvas, canvas, 5, 5)
    images, canvases = random_images(3, 1, side, side) * 0.5, random_images(3, 1, canvas, canvas) * 0.5
    region = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    region[1:3, 2:] = True
    for chosen in (region.view(-1), torch.zeros(grid.places, dtype=torch.bool)):
        pictures.save_edit(tmp_path / "edit.png", canvases, images, ["A", "B", "both"], chosen, grid)
        page = rgb(tmp_path / "edit.png")
        tile = side * -(-224 // side)
        left = page.shape[1] - 3 * (tile + GUTTER)
        scale = tile // canvas
        for column in range(3):
            x = left + column * (tile + GUTTER)
            shown = page[GUTTER : GUTTER + tile, x : x + tile]
            framed = (shown == np.array(OUTLINE)).all(-1)
            if chosen.any():
                rows, columns = np.nonzero(framed)
                box = (rows.min(), rows.max(), columns.min(), columns.max())
                assert box == (5 * scale, 15 * scale - 1, 10 * scale, tile - 1)
            else:
                assert not framed.any()
            np.testing.assert_array_equal(shown[~framed], enlarged(canvases[column], scale)[~framed])
            below = page[2 * GUTTER + LINE + tile :, x : x + tile][:tile]
            np.testing.assert_array_equal(below, enlarged(images[column], tile // side))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_and_bank_sheet_hold_the_pixels(channels: int) -> None:
    image = random_images(channels, 9, 7)
    with Image.open(io.BytesIO(pictures.png(image))) as found:
        assert found.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(rgb(found), enlarged(image, 1))
    bank = PartBank(random_images(5, channels, 3, 3))
    with Image.open(io.BytesIO(pictures.bank_sheet(bank, 2))) as found:
        sheet = rgb(found)
    assert sheet.shape == (9, 6, 3)
    np.testing.assert_array_equal(sheet[3:6, 3:6], enlarged(bank.parts[3], 1))
    assert (sheet[6:, 3:] == 0).all()


def test_the_last_frame_of_a_grey_generation_is_exact(tmp_path: Path) -> None:
    z = PartSequence(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 8]]), torch.tensor([[0, 0]]))
    grid = Grid(28, 28, 5, 5)
    steps = paste_steps(random_images(1, 2, 1, 5, 5), z.where, grid)
    image = torch.arange(784).view(1, 1, 28, 28) % 256 / 255  # every grey
    (tmp_path / "g.gif").write_bytes(
        pictures.generation_gif(steps, z.whether, grid.corners[z.where], 5, image)
    )
    frames, _ = gif_frames(tmp_path / "g.gif")
    np.testing.assert_array_equal(frames[-1][-116:-4, -116:-4], enlarged(image[0], 4))
    np.testing.assert_array_equal(frames[-1][-232:-120, -116:-4], enlarged(steps[0, -1], 4))


def test_an_interpolation_is_a_frame_a_row(tmp_path: Path) -> None:
    images, canvases = few_colours(random_images(4, 3, 64, 64)), few_colours(random_images(4, 3, 32, 32))
    pictures.save_interpolation(tmp_path / "i.gif", canvases, images)
    frames, durations = gif_frames(tmp_path / "i.gif")
    assert len(frames) == 4
    assert durations[-1] > durations[0]
    assert np.abs(cell(frames[2], 0, 0, 256) - enlarged(canvases[2], 8)).mean() < 1
