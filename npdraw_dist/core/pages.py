"""Lays out images on a page with captions, row labels and a title.

Shapes: N images, C channels (1 or 3), h x w canvas, H x W image. Images are floats in [0, 1]. Each image
pixel becomes a square of page pixels, which are called px.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from npdraw_dist.core.images import to_pil

GUTTER = 4
TILE = 100  # least length of an enlarged image's longer side, px
SMALL_TILE = 80  # TILE for pages with many images in a row, px
WIDTH = 1720  # largest width of a page, so that it fits on a screen, px
FONT = ImageFont.load_default(13)
LINE = 20  # height of a line of text, px
PAPER, INK, OUTLINE = (236, 236, 236), (70, 70, 70), (240, 60, 40)
MOST = 256  # largest number of samples on a page; viewers do not open much larger pages


def enlarge(image: Tensor, tile: int) -> Image.Image:
    """(C, H, W) -> an RGB image. Each pixel becomes a square, and the longer side has at least `tile` px."""
    picture = to_pil(image)[0].convert("RGB")
    return ImageOps.scale(picture, math.ceil(tile / max(picture.size)), Image.Resampling.NEAREST)


def tile_side(images: Tensor, least: int = TILE) -> int:
    """The longer side, in px, of images (..., H, W) after `enlarge` with the tile `least`."""
    longer = max(images.shape[-2:])
    return longer * math.ceil(least / longer)


def fitting(width: int, gutter: int = GUTTER, margin: int = 0) -> int:
    """The number of tiles of `width` px that fit side by side on a page of WIDTH px, at least 1."""
    return max((WIDTH - margin - gutter) // (width + gutter), 1)


def arrange(
    tiles: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    gutter: int = GUTTER,
) -> Image.Image:
    """A page of tiles of one size in reading order, with gutters between and around them.

    Each caption is below its tile. All captions must have as many lines as the first.
    """
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    text = LINE * (captions[0].count("\n") + 1) if captions else 0
    step_x, step_y = width + gutter, height + gutter + text
    rows = math.ceil(len(tiles) / columns)
    page = Image.new("RGB", (columns * step_x + gutter, rows * step_y + gutter), PAPER)
    for index, tile in enumerate(tiles):
        x, y = gutter + index % columns * step_x, gutter + index // columns * step_y
        page.paste(tile, (x, y))
        if captions:
            write(page, captions[index], x + width / 2, y + height + text / 2, "mm")
    return page


def write(page: Image.Image, text: str, x: float, middle: float, anchor: str) -> None:
    """Writes lines of text, centred vertically at y = `middle`. anchor: Pillow's text anchor of each line."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        y = middle + LINE * (number - (len(lines) - 1) / 2)
        ImageDraw.Draw(page).text((x, y), line, INK, FONT, anchor)


def label_margin(labels: Sequence[str]) -> int:
    """The width, in px, that the labels need on the left of a page."""
    lines = [line for label in labels for line in label.split("\n")]
    return math.ceil(max(FONT.getlength(line) for line in lines)) + 2 * GUTTER


def label_rows(
    page: Image.Image, labels: Sequence[str], middles: Sequence[float] | None = None
) -> Image.Image:
    """`page` with row labels on its left, at the y values `middles` or centred on rows of equal height."""
    margin, each = label_margin(labels), page.height / len(labels)
    page = ImageOps.expand(page, (margin, 0, 0, 0), PAPER)
    for row, label in enumerate(labels):
        middle = middles[row] if middles else (row + 0.5) * each
        write(page, label, margin - GUTTER / 2, middle, "rm")
    return page


def with_title(page: Image.Image, title: str) -> Image.Image:
    """`page` with a line of text above it, widened if the text is wider than the page."""
    wider = max(math.ceil(FONT.getlength(title)) + 4 * GUTTER - page.width, 0)
    page = ImageOps.expand(page, (0, LINE, wider, 0), PAPER)
    write(page, title, 2 * GUTTER, LINE / 2 + 2, "lm")
    return page


def frame(canvas: Image.Image, box: Sequence[int], scale: int, width: int = 2) -> None:
    """Outlines a box, clipped to a canvas enlarged `scale` times. box: unscaled top, left, bottom, right."""
    top, left = (max(scale * value, 0) for value in box[:2])
    bottom, right = min(scale * box[2], canvas.height) - 1, min(scale * box[3], canvas.width) - 1
    if right > left and bottom > top:  # an attention window of DRAW may be outside the canvas
        ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), outline=OUTLINE, width=width)


def sheet(images: Tensor, columns: int, tile: int, captions: Sequence[str] | None = None) -> Image.Image:
    """(N, C, H, W) -> a page of the images in reading order, each enlarged to at least `tile` px."""
    return arrange([enlarge(image, tile) for image in images], columns, captions)


def save_samples(path: Path, images: Tensor, canvases: Tensor | None) -> None:
    """Writes a page of the first MOST images (N, C, H, W).

    If there are canvases (N, C, h, w), each image is to the right of its canvas. A row has at most 8 images,
    and no more than fit on the page.
    """
    images, canvases = images[:MOST], None if canvases is None else canvases[:MOST]
    columns = min(math.ceil(math.sqrt(len(images))), 8)
    if canvases is None:
        sheet(images, min(columns, fitting(tile_side(images))), TILE).save(path, optimize=True)
        return
    tile = tile_side(images, SMALL_TILE)
    both = zip(canvases, images, strict=True)
    pairs = [arrange([enlarge(image, tile) for image in pair], 2, gutter=1) for pair in both]
    page = arrange(pairs, min(columns, fitting(pairs[0].width, 2 * GUTTER)), gutter=2 * GUTTER)
    with_title(page, "canvas left, image right").save(path, optimize=True)


def rows_png(
    rows: Mapping[str, Tensor], captions: Sequence[Sequence[str] | None] | None = None, title: str = ""
) -> bytes:
    """A PNG with a row of N images for each name, all enlarged to about the size of the largest.

    captions: for each row the texts below its images, or None. Rows that are wider than a page are cut into
    blocks, which are stacked with gaps; each block has all labels.
    """
    largest = max(rows.values(), key=lambda images: max(images.shape[-2:]))
    count, margin = len(largest), label_margin(list(rows))
    tile = tile_side(largest)
    if count > fitting(tile, margin=margin):
        tile = tile_side(largest, SMALL_TILE)
    blocks = math.ceil(count / fitting(enlarge(largest[0], tile).width, margin=margin))
    columns = math.ceil(count / blocks)
    pages = []
    for start in range(0, count, columns):
        strips, middles, height = [], [], 0
        for images, texts in zip(rows.values(), captions or [None] * len(rows), strict=True):
            part = slice(start, start + columns)
            tiles = [enlarge(image, tile) for image in images[part]]
            strips.append(arrange(tiles, columns, texts and texts[part]))
            middles.append(height + GUTTER + tiles[0].height / 2)
            height += strips[-1].height - GUTTER
        pages.append(label_rows(stack(strips, GUTTER), list(rows), middles))
    page = stack(pages, -2 * GUTTER)
    file = io.BytesIO()
    (with_title(page, title) if title else page).save(file, "PNG", optimize=True)
    return file.getvalue()


def stack(pages: Sequence[Image.Image], overlap: int) -> Image.Image:
    """Stacks pages; the first must be the widest. overlap: px that neighbours share; negative for a gap."""
    height = sum(page.height - overlap for page in pages) + overlap
    whole, y = Image.new("RGB", (pages[0].width, height), PAPER), 0
    for page in pages:
        whole.paste(page, (0, y))
        y += page.height - overlap
    return whole
