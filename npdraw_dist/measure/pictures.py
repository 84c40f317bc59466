"""Pictures as files: sheets of images, previews, curves, and the animation of a sample.

To add a picture of a run, write a function here, call it in the stage that has its inputs, and name the
file in that stage's PICTURES.

Shapes: N images, B batch, T steps, K parts, C channels (1 or 3), P patch side, h x w canvas,
H x W image. Images are floats in [0, 1]; each of their pixels becomes a square of file pixels ("px").
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.images import to_canvas
from npdraw_dist.core.parts import PartBank

GUTTER = 4
TILE = 100  # least side of an enlarged image, px
PART_TILE = 50
FONT = ImageFont.load_default(13)
LINE = 20  # height of a line of text, px
PAPER, INK, OUTLINE = (236, 236, 236), (70, 70, 70), (240, 60, 40)
PREVIEWS = 16
ANIMATED = 8
LAST_FRAME_MS = 3000
MAX_GIF_BYTES = 1_000_000
GIF_GREYS = 128  # of all frames but the last; more make the file larger
EDIT_TILE = 224


def sheet(
    images: Tensor, columns: int, tile: int = TILE, captions: Sequence[str] | None = None
) -> Image.Image:
    """(N, C, H, W) -> a sheet in reading order, with gutters, and each caption under its image.

    Images are enlarged by the least whole factor that makes their longer side at least `tile` px.
    """
    return _arrange([_enlarge(image, tile) for image in images], columns, captions)


def save_bank(path: Path, bank: PartBank, sizes: Tensor | Sequence[int] | None = None) -> None:
    """The parts in the bank's order. sizes: (K,), the number of patches, written below each part."""
    captions = None if sizes is None else [_short(int(size)) for size in sizes]
    columns = math.ceil(math.sqrt(2 * len(bank)))
    sheet(bank.parts, columns, PART_TILE, captions).save(path, optimize=True)


def save_parse_preview(path: Path, images: Tensor, canvases: Tensor) -> None:
    """images (N, C, H, W), canvases (N, C, h, w): three rows of at most 16, the last |image - canvas|.

    The difference is taken at the canvas's size, where the parser works.
    """
    images, canvases = images[:PREVIEWS].cpu(), canvases[:PREVIEWS].cpu()
    difference = (to_canvas(images, images.shape[-1] // canvases.shape[-1]) - canvases).abs()
    save_rows(path, {"image": images, "canvas": canvases, "difference": difference})


def save_reconstructions(path: Path, images: Tensor, canvases: Tensor, decoded: Tensor) -> None:
    """images and decoded (N, C, H, W), canvases (N, C, h, w): three rows of at most 16."""
    rows = {"image": images, "canvas": canvases, "reconstruction": decoded}
    save_rows(path, {name: tensor[:PREVIEWS] for name, tensor in rows.items()})


def save_edit(
    path: Path, canvases: Tensor, images: Tensor, names: Sequence[str], region: Tensor, grid: Grid
) -> None:
    """canvases (N, C, h, w) above images (N, C, H, W), a column for each name.

    region: (L,) bool, the places whose bounding box is framed on each canvas.
    """
    tile = _side(images, EDIT_TILE)
    upper = [_enlarge(canvas, tile) for canvas in canvases]
    if region.any():
        corners = grid.corners.to(region.device)[region]
        box = torch.cat([corners.amin(0), corners.amax(0) + grid.patch]).tolist()
        for canvas in upper:
            _frame(canvas, box, canvas.width // grid.width)
    pages = upper + [_enlarge(image, tile) for image in images]
    page = _arrange(pages, len(names), captions=[*[""] * len(names), *names])
    _label_rows(page, ["canvas", "image"]).save(path, optimize=True)


def save_interpolation(path: Path, canvases: Tensor, images: Tensor) -> None:
    """An endless GIF with a frame for each canvas (N, C, h, w) and image (N, C, H, W); the last is longer."""
    tile = _side(images, EDIT_TILE)
    pairs = zip(canvases, images, strict=True)
    frames = [_arrange([_enlarge(canvas, tile), _enlarge(image, tile)], 2) for canvas, image in pairs]
    path.write_bytes(_gif(frames, grey=images.shape[1] == 1))


def png(image: Tensor) -> bytes:
    """(C, H, W) in [0, 1] -> a PNG of the same size, grey if C is 1."""
    picture = _enlarge(image, 1)
    file = io.BytesIO()
    (picture.convert("L") if len(image) == 1 else picture).save(file, "PNG")
    return file.getvalue()


def bank_sheet(bank: PartBank, columns: int) -> bytes:
    """A PNG of all parts in reading order, `columns` in a row, not enlarged, without gutters."""
    rows = math.ceil(len(bank) / columns)
    cells = bank.parts.new_zeros(rows * columns, *bank.parts.shape[1:])
    cells[: len(bank)] = bank.parts
    sides = (bank.channels, rows * bank.patch, columns * bank.patch)
    tiled = cells.view(rows, columns, *bank.parts.shape[1:]).permute(2, 0, 3, 1, 4).reshape(sides)
    return png(tiled)


def save_samples(path: Path, images: Tensor, canvases: Tensor | None) -> None:
    """images (N, C, H, W), canvases (N, C, h, w): a grid of pairs, canvas left and image right.

    Without canvases, a grid of images.
    """
    if canvases is None:
        sheet(images, min(math.ceil(math.sqrt(len(images))), 8)).save(path, optimize=True)
        return
    tile = _side(images)
    pairs = [
        _arrange([_enlarge(canvas, tile), _enlarge(image, tile)], 2, gutter=1)
        for canvas, image in zip(canvases, images, strict=True)
    ]
    page = _arrange(pairs, min(math.ceil(math.sqrt(len(pairs))), 8), gutter=2 * GUTTER)
    _with_title(page, "canvas left, image right").save(path, optimize=True)


def save_rows(file: Path | io.BytesIO, rows: Mapping[str, Tensor]) -> None:
    """A PNG with a labelled row of N images for each name; the first row's size is that of all."""
    first = next(iter(rows.values()))
    tiles = [_enlarge(image, _side(first)) for images in rows.values() for image in images]
    _label_rows(_arrange(tiles, len(first)), list(rows)).save(file, "PNG", optimize=True)


def save_curves(path: Path, table: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """name -> (images seen, values): a plot for each name, two in a row."""
    rows = max(math.ceil(len(table) / 2), 1)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained", dpi=100)
    for index, (name, (images_seen, values)) in enumerate(table.items()):
        axes = figure.add_subplot(rows, 2, index + 1)
        axes.plot(images_seen, values, marker="." if len(values) < 50 else None, linewidth=1.2)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("images seen", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def generation_gif(
    steps: Tensor, whether: Tensor, corners: Tensor, sides: int | Tensor, images: Tensor
) -> bytes:
    """An endless GIF of at most 8 samples: canvases grow in the upper row, images are in the lower one.

    steps: (B, T, C, h, w), the canvas after each step. whether: (B, T) bool. corners: (B, T, 2), the
    top-left pixel (row, column) of each step's part. sides: (B, T) in pixels, or one side for all parts.
    images: (B, C, H, W), or the image decoded after each step, (B, T, C, H, W). There is a frame for each
    step at which any sample draws, with the new parts outlined. The last frame is longer, has no outlines,
    and is exact if the images are grey (colours are reduced to 256). A file over 1 MB is made again with
    half the samples.
    """
    samples = min(len(steps), ANIMATED)
    side = torch.as_tensor(sides).expand(whether.shape)[..., None]
    boxes = torch.cat([corners, corners + side], -1)
    while True:
        steps, whether, boxes, images = (tensor[:samples].cpu() for tensor in (steps, whether, boxes, images))
        frames = _frames(steps, whether, boxes, images)
        data = _gif(frames, grey=steps.shape[2] == 1)
        if len(data) <= MAX_GIF_BYTES or samples == 1:
            return data
        samples //= 2


def _frames(steps: Tensor, whether: Tensor, boxes: Tensor, images: Tensor) -> list[Image.Image]:
    """The RGB frames of `generation_gif`. boxes: (B, T, 4), first and end of rows and columns."""
    batch, length = whether.shape
    if images.ndim == 4:
        images = images[:, None].expand(-1, length, -1, -1, -1)
    assert steps.shape[:2] == boxes.shape[:2] == images.shape[:2] == (batch, length)
    tile = _side(images)
    scale = tile // max(steps.shape[-2:])
    drawn = whether.any(0).nonzero()[:, 0].tolist()
    frames = []
    for step in [*drawn, None]:
        now = length - 1 if step is None else step
        canvases = [_enlarge(canvas, tile) for canvas in steps[:, now]]
        for index in range(batch if step is not None else 0):
            if whether[index, now]:
                _frame(canvases[index], boxes[index, now].tolist(), scale)
        page = _arrange(canvases + [_enlarge(image, tile) for image in images[:, now]], batch)
        title = "finished" if step is None else f"step {step + 1} of {length}"
        frames.append(_with_title(_label_rows(page, ["canvas", "image"]), title))
    return frames


def _frame(canvas: Image.Image, box: Sequence[int], scale: int) -> None:
    """Outlines the box (top, left, bottom, right) of canvas pixels, cropped by the canvas."""
    top, left = (max(scale * value, 0) for value in box[:2])
    bottom, right = min(scale * box[2], canvas.height) - 1, min(scale * box[3], canvas.width) - 1
    if right > left and bottom > top:  # an attention window of DRAW may be outside
        ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), outline=OUTLINE, width=2)


def _gif(frames: list[Image.Image], grey: bool) -> bytes:
    """An endless GIF with one palette, so that colours do not flicker."""
    palette = _palette(frames, grey)
    paletted = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    if grey:
        paletted[-1] = frames[-1].convert("L")  # without an outline all 256 greys fit
    step_ms = int(np.clip(6000 / len(frames), 80, 400))
    durations = [step_ms] * (len(frames) - 1) + [LAST_FRAME_MS]
    file = io.BytesIO()
    paletted[0].save(
        file, "GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0, disposal=1
    )
    return file.getvalue()


def _palette(frames: list[Image.Image], grey: bool) -> Image.Image:
    """An image whose palette has the colours of outline and text, and greys or the colours of 3 frames."""
    palette = Image.new("P", (1, 1))
    fixed = [*OUTLINE, *PAPER, *INK]
    if grey:
        colours = np.linspace(0, 255, GIF_GREYS).round().astype(int).repeat(3).tolist()
    else:
        seen = _arrange([frames[0], frames[len(frames) // 2], frames[-1]], 1)
        colours = seen.quantize(240, Image.Quantize.MEDIANCUT).getpalette() or []
    palette.putpalette(fixed + colours)
    return palette


def _enlarge(image: Tensor, tile: int) -> Image.Image:
    """(C, H, W) in [0, 1] -> RGB, each pixel a square, the longer side at least `tile` px."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    factor = math.ceil(tile / max(pixels.shape[:2]))
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)))


def _side(images: Tensor, least: int = TILE) -> int:
    """The longer side in px of enlarged images (..., H, W)."""
    longer = max(images.shape[-2:])
    return longer * math.ceil(least / longer)


def _arrange(
    tiles: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    gutter: int = GUTTER,
) -> Image.Image:
    """A page of equal tiles in reading order, with gutters between and around them."""
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    step_x, step_y = width + gutter, height + gutter + (LINE if captions else 0)
    rows = math.ceil(len(tiles) / columns)
    page = Image.new("RGB", (columns * step_x + gutter, rows * step_y + gutter), PAPER)
    pen = ImageDraw.Draw(page)
    for index, tile in enumerate(tiles):
        x, y = gutter + index % columns * step_x, gutter + index // columns * step_y
        page.paste(tile, (x, y))
        if captions:
            pen.text((x + width / 2, y + height + LINE / 2), captions[index], INK, FONT, "mm")
    return page


def _label_rows(page: Image.Image, labels: Sequence[str]) -> Image.Image:
    """`page` with a label on the left of each of its equal rows."""
    margin = math.ceil(max(FONT.getlength(label) for label in labels)) + 2 * GUTTER
    wide = Image.new("RGB", (page.width + margin, page.height), PAPER)
    wide.paste(page, (margin, 0))
    pen = ImageDraw.Draw(wide)
    for row, label in enumerate(labels):
        middle = (row + 0.5) * page.height / len(labels)
        pen.text((margin - GUTTER / 2, middle), label, INK, FONT, "rm")
    return wide


def _with_title(page: Image.Image, title: str) -> Image.Image:
    """`page` with a line of text above."""
    tall = Image.new("RGB", (page.width, page.height + LINE), PAPER)
    tall.paste(page, (0, LINE))
    ImageDraw.Draw(tall).text((2 * GUTTER, LINE / 2 + 2), title, INK, FONT, "lm")
    return tall


def _short(number: int) -> str:
    """12345 -> 12k: at most four characters, to fit under a narrow tile."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.1f}{unit}" if number < 10 * size else f"{number // size}{unit}"
    return str(number)
