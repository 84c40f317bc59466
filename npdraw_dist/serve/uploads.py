"""Inverts, crops and scales uploaded pictures to the size and position of the model's own drawings.

Shapes: C channels, H x W image of the model, h x w pixels of the picture.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from npdraw_dist.core.pictures import BadPicture, Frame, opaque, open_picture, to_image, upright
from npdraw_dist.serve.schemas import Choice, Placement

Box = tuple[int, int, int, int]  # left, top, right, bottom

MAX_BYTES = 8 << 20
MAX_PIXELS = 16_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
INK = 48  # a pixel is ink if it differs from the paper by more than this (of 255)
MOST_INK_AT_EDGES = 0.1  # if a larger share of the outer pixels is ink, the paper is not plain


def place_picture(
    content: bytes, frame: Frame, invert: Choice, extent: float | None = None
) -> tuple[Tensor, Placement]:
    """An encoded picture -> uint8 (1, C, H, W), and how it was converted. frame: shape and background.

    invert: `auto` inverts a grey picture whose paper (or whose ink, if the paper is transparent) has the
    wrong brightness; pictures in colour are only inverted by `yes`. extent: ink on plain paper is centred,
    and its longer side takes this share of the image's side. Without plain paper or ink, or if extent is
    None, the centre is taken. Raises BadPicture, before decoding if the picture is too large.
    """
    if not content:
        raise BadPicture("the file is empty")
    if len(content) > MAX_BYTES:
        raise BadPicture(f"the file has {len(content):,} bytes; the limit is {MAX_BYTES:,}")
    picture = upright(open_picture(content, FORMATS, MAX_PIXELS))  # its mode is L, RGB or RGBA
    channels, height, width = frame.shape
    white = frame.background == "white"
    inverted = invert == "yes" or (invert == "auto" and channels == 1 and _is_negative(picture, white))
    # Transparent pixels must become the background, also if all pixels are inverted afterwards.
    behind = "white" if white != inverted else "black"
    flat = opaque(picture, behind, frame.mode)
    flat = ImageOps.invert(flat) if inverted else flat
    box = None if extent is None else _box_of_ink(np.asarray(flat), extent, (width, height))
    if box is None:
        across, down = frame.box(flat.size)
        left, top = round((flat.width - across) / 2), round((flat.height - down) / 2)
        box = (left, top, left + across, top + down)
    else:
        flat = _cut(flat, box, (width, height))
    pixels = to_image(flat, frame)
    placed = Placement(inverted=inverted, cropped=list(box), scaled=width / (box[2] - box[0]))
    return torch.tensor(pixels)[None], placed


def _is_negative(picture: Image.Image, white: bool) -> bool:
    """Whether the paper contrasts with the model's background or, if it is transparent, the ink does not."""
    if picture.has_transparency_data:
        small = picture.convert("RGBA")
        small.thumbnail((256, 256))
        values = np.asarray(small, dtype=np.float32) / 255
        alpha = values[..., 3]
        if alpha.min() < 0.5:
            ink = float((values[..., :3].mean(-1) * alpha).sum() / max(float(alpha.sum()), 1e-6))
            return bool(alpha.sum() > 0) and abs(ink - white) < 0.5
    paper = float(np.median(_edges(np.asarray(picture.convert("RGB").convert("L"))))) / 255
    return abs(paper - white) > 0.5


def _edges(values: NDArray[Any]) -> NDArray[Any]:
    """(h, w) or (h, w, 3) -> (n,) or (n, 3), the pixels of the first and last rows and columns."""
    rows, columns = values[[0, -1]], values[:, [0, -1]]
    tail = values.shape[2:]
    return np.concatenate([rows.reshape(-1, *tail), columns.reshape(-1, *tail)])


def _box_of_ink(values: NDArray[np.uint8], extent: float, size: tuple[int, int]) -> Box | None:
    """The box in which the ink's longer side takes the share `extent`; None without ink or plain paper.

    size: (width, height) of the image, whose shape the box has.
    """
    edges = _edges(values)
    paper = np.median(edges, axis=0)
    if _is_ink(edges, paper).mean() > MOST_INK_AT_EDGES:
        return None
    box = Image.fromarray(_is_ink(values, paper)).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    scale = max((right - left) / size[0], (bottom - top) / size[1]) / extent
    across, down = (max(round(scale * side), 1) for side in size)
    first_row, first_column = round((top + bottom - down) / 2), round((left + right - across) / 2)
    return first_column, first_row, first_column + across, first_row + down


def _is_ink(values: NDArray[np.uint8], paper: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each pixel differs from the paper: bool (h, w) or (n,), without the axis of colours."""
    off = np.abs(values.astype(np.int16) - np.asarray(paper).astype(np.int16)) > INK
    return off if np.ndim(paper) == 0 else np.asarray(off.any(-1))


def _cut(flat: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Crops and scales the box to `size` (width, height). Beyond the picture, it has the paper's colour."""
    left, top, right, bottom = box
    across, down = size[0] / (right - left), size[1] / (bottom - top)
    inner = (max(left, 0), max(top, 0), min(right, flat.width), min(bottom, flat.height))
    scaled = (max(round((inner[2] - inner[0]) * across), 1), max(round((inner[3] - inner[1]) * down), 1))
    paper = np.median(_edges(np.asarray(flat)), axis=0).astype(int)
    page = Image.new(flat.mode, size, int(paper) if flat.mode == "L" else tuple(paper.tolist()))
    piece = flat.crop(inner).resize(scaled, Image.Resampling.BILINEAR)
    page.paste(piece, (round((inner[0] - left) * across), round((inner[1] - top) * down)))
    return page
