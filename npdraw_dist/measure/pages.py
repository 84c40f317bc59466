"""The layout of pictures: enlarged images as tiles, pages of tiles, labels and captions.

Shapes: N images, C channels (1 or 3), H x W image. Images are floats in [0, 1]; each of their pixels becomes
a square of file pixels ("px").
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GUTTER = 4
TILE = 100  # least side of an enlarged image, px
SMALL_TILE = 80  # where many are side by side
WIDTH = 1720  # largest width of a page, px: it fits a screen
FONT = ImageFont.load_default(13)
LINE = 20  # height of a line of text, px
PAPER, INK, OUTLINE = (236, 236, 236), (70, 70, 70), (240, 60, 40)


def enlarge(image: Tensor, tile: int) -> Image.Image:
    """(C, H, W) in [0, 1] -> RGB, each pixel a square, the longer side at least `tile` px."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    factor = math.ceil(tile / max(pixels.shape[:2]))
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)))


def tile_side(images: Tensor, least: int = TILE) -> int:
    """The longer side in px of enlarged images (..., H, W)."""
    longer = max(images.shape[-2:])
    return longer * math.ceil(least / longer)


def fitting(width: int, gutter: int = GUTTER, margin: int = 0) -> int:
    """How many tiles of `width` px are side by side on a page of WIDTH, at least one."""
    return max((WIDTH - margin - gutter) // (width + gutter), 1)


def arrange(
    tiles: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    gutter: int = GUTTER,
) -> Image.Image:
    """A page of equal tiles in reading order, with gutters between and around them.

    Each caption is below its tile; all have the number of lines of the first.
    """
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    text = LINE * (captions[0].count("\n") + 1) if captions else 0
    step_x, step_y = width + gutter, height + gutter + text
    rows = math.ceil(len(tiles) / columns)
    page = Image.new("RGB", (columns * step_x + gutter, rows * step_y + gutter), PAPER)
    pen = ImageDraw.Draw(page)
    for index, tile in enumerate(tiles):
        x, y = gutter + index % columns * step_x, gutter + index // columns * step_y
        page.paste(tile, (x, y))
        for line, words in enumerate(captions[index].split("\n") if captions else ()):
            pen.text((x + width / 2, y + height + LINE * (line + 0.5)), words, INK, FONT, "mm")
    return page


def labelled_rows(
    rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[Sequence[str] | None]
) -> Image.Image:
    """Rows of equally many equal tiles by their labels, one below the other, with captions or None for each.

    Rows that are wider than a page are cut into blocks; each has all labels, and a gap above it.
    """
    first = next(iter(rows.values()))
    count, margin = len(first), label_margin(list(rows))
    blocks = math.ceil(count / fitting(first[0].width, margin=margin))
    columns = math.ceil(count / blocks)
    strips: list[tuple[str, Image.Image, int]] = []  # label, picture, space above it
    for start in range(0, count, columns):
        for number, ((label, tiles), texts) in enumerate(zip(rows.items(), captions, strict=True)):
            part = slice(start, start + columns)
            gap = 3 * GUTTER if number == 0 and start > 0 else 0
            strips.append((label, arrange(tiles[part], columns, texts and texts[part]), gap))
    # Strips overlap by a gutter, so that rows are as far apart as columns.
    height = sum(strip.height - GUTTER + gap for _, strip, gap in strips) + GUTTER
    page = Image.new("RGB", (strips[0][1].width + margin, height), PAPER)
    pen, y = ImageDraw.Draw(page), 0
    for label, strip, gap in strips:
        y += gap
        page.paste(strip, (margin, y))
        _write_label(pen, label, margin, y + GUTTER + first[0].height / 2)
        y += strip.height - GUTTER
    return page


def label_rows(page: Image.Image, labels: Sequence[str]) -> Image.Image:
    """`page` with a label on the left of each of its equal rows."""
    margin = label_margin(labels)
    wide = Image.new("RGB", (page.width + margin, page.height), PAPER)
    wide.paste(page, (margin, 0))
    pen = ImageDraw.Draw(wide)
    for row, label in enumerate(labels):
        _write_label(pen, label, margin, (row + 0.5) * page.height / len(labels))
    return wide


def label_margin(labels: Sequence[str]) -> int:
    """The width in px of the labels on the left of a page."""
    lines = [line for label in labels for line in label.split("\n")]
    return math.ceil(max(FONT.getlength(line) for line in lines)) + 2 * GUTTER


def _write_label(pen: ImageDraw.ImageDraw, label: str, margin: int, middle: float) -> None:
    """The lines of a label around the height `middle`."""
    lines = label.split("\n")
    for number, line in enumerate(lines):
        y = middle + LINE * (number - (len(lines) - 1) / 2)
        pen.text((margin - GUTTER / 2, y), line, INK, FONT, "rm")


def with_title(page: Image.Image, title: str) -> Image.Image:
    """`page` with a line of text above, as wide as the longer of both."""
    width = max(page.width, math.ceil(FONT.getlength(title)) + 4 * GUTTER)
    tall = Image.new("RGB", (width, page.height + LINE), PAPER)
    tall.paste(page, (0, LINE))
    ImageDraw.Draw(tall).text((2 * GUTTER, LINE / 2 + 2), title, INK, FONT, "lm")
    return tall


def frame(canvas: Image.Image, box: Sequence[int], scale: int, width: int = 2) -> None:
    """Outlines the box (top, left, bottom, right) of canvas pixels, cropped by the canvas."""
    top, left = (max(scale * value, 0) for value in box[:2])
    bottom, right = min(scale * box[2], canvas.height) - 1, min(scale * box[3], canvas.width) - 1
    if right > left and bottom > top:  # an attention window of DRAW may be outside
        ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), outline=OUTLINE, width=width)


def short(number: int) -> str:
    """12345 -> 12k: at most four characters, to fit under a narrow tile."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.1f}{unit}" if number < 10 * size else f"{number // size}{unit}"
    return str(number)
