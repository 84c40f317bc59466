"""Draws pictures of a run's bank and of its parses.

To add a picture of a run, write a function in this file, call it in the stage that has its inputs, and name
the picture in that stage's STAGE. `core.pages` lays out pages, `nn.animation` makes GIFs, `edit.posters`
draws edits and `measure.curves` plots metrics.

Shapes: N images, K parts, C channels (1 or 3), P patch side, h x w canvas, H x W image. Images are floats in
[0, 1]; each of their pixels becomes a square of file pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.core.images import to_canvas
from npdraw_dist.core.pages import rows_png, sheet, with_title
from npdraw_dist.core.parts import PartBank

PART_TILE = 50
PREVIEWS = 16
GREY_CHROMA = 0.06  # a part is grey if its mean chroma (largest minus smallest channel of a pixel) is lower
HUES = 12  # number of groups of similar hues, each 30 degrees wide
LUMA = torch.tensor([0.299, 0.587, 0.114])  # weights of red, green and blue (Rec. 601)
# Colours of the differences 0, 1/2 and 1: white, red and dark red.
DIFFERENCE_COLOURS = torch.tensor([[1.0, 1.0, 1.0], [0.86, 0.15, 0.12], [0.30, 0.0, 0.05]])
DIFFERENCE_FACTORS = (32, 16, 8, 4, 2)


def save_bank(path: Path, bank: PartBank, sizes: Sequence[int]) -> None:
    """Draws all parts of a bank. Colour parts are sorted by colour and captioned with their indices.

    sizes: (K,), the number of patches of each part, written below the part.
    """
    colour = bank.channels == 3
    order = colour_order(bank.parts) if colour else list(range(len(bank)))
    captions = [f"#{index}\n{short(sizes[index])}" if colour else short(sizes[index]) for index in order]
    page = sheet(bank.parts[torch.tensor(order)], math.ceil(math.sqrt(2 * len(bank))), PART_TILE, captions)
    title = f"{len(bank)} parts" + (", by colour; #: index" if colour else "")
    with_title(page, f"{title}; below: patches").save(path, optimize=True)


def short(number: int) -> str:
    """Shortens a number (12345 -> 12k) to at most four characters, which fit under a narrow tile."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.1f}{unit}" if number < 10 * size else f"{number // size}{unit}"
    return str(number)


def colour_order(parts: Tensor) -> list[int]:
    """Sorts parts (K, 3, P, P) into greys, then similar hues, each group from dark to light; returns indices.

    A pixel counts for the hue in proportion to its chroma, so a leaf on white paper counts as green.
    """
    from matplotlib.colors import rgb_to_hsv  # slow to import

    pixels = parts.flatten(2)
    chroma = pixels.amax(1) - pixels.amin(1)  # (K, P * P)
    coloured = (pixels * chroma[:, None]).sum(2) / chroma.sum(1, keepdim=True).clamp(min=1e-6)
    hue = rgb_to_hsv(coloured.clamp(0, 1).numpy())[:, 0]
    group = ((hue * HUES + 0.5) % HUES).astype(int)  # hues of red lie on both sides of 0 and form one group
    group[chroma.mean(1).numpy() < GREY_CHROMA] = -1
    lightness = (pixels.mean(2) * LUMA).sum(1).numpy()
    return [int(index) for index in np.lexsort((lightness, group))]


def looks_order(parts: Tensor) -> list[int]:
    """Sorts parts (K, C, P, P) so that similar parts are near each other; returns indices.

    Coloured parts are sorted by `colour_order`. Grey parts form about sqrt(K) equal groups from dark to
    light, and each group is sorted by the first principal component.
    """
    if parts.shape[1] == 3:
        return colour_order(parts)
    pixels = parts.flatten(1)
    off = pixels - pixels.mean(0)
    direction = torch.linalg.svd(off, full_matrices=False).Vh[0]
    # The SVD leaves the sign of the direction open, so its largest component is made positive.
    along = off @ (direction * direction[direction.abs().argmax()].sign())
    rank = pixels.mean(1).argsort(stable=True).argsort()
    group = rank // math.ceil(math.sqrt(len(parts)))
    return [int(index) for index in np.lexsort((along.cpu().numpy(), group.cpu().numpy()))]


def save_parse_preview(path: Path, images: Tensor, canvases: Tensor) -> None:
    """Draws three rows: at most 16 images (N, C, H, W), their canvases (N, C, h, w) and the differences.

    The differences are computed at the size of the canvas, as in the parser, and captioned with their MSE.
    """
    images, canvases = images[:PREVIEWS].cpu(), canvases[:PREVIEWS].cpu()
    difference = to_canvas(images, images.shape[-1] // canvases.shape[-1]) - canvases
    factor = difference_factor(difference)
    errors = [f"MSE {error:.4f}" for error in difference.square().mean((1, 2, 3)).tolist()]
    rows = {"image": images, "canvas": canvases}
    last = {f"difference\nx {factor}": difference_colours(difference, factor)}
    path.write_bytes(rows_png(rows | last, [None, None, errors]))


def difference_factor(difference: Tensor) -> int:
    """The largest of DIFFERENCE_FACTORS that lifts at most 1% of the pixels above 1, or else the smallest."""
    largest = float(difference.abs().flatten().sort().values[int(0.99 * (difference.numel() - 1))])
    return next((factor for factor in DIFFERENCE_FACTORS if factor * largest <= 1), DIFFERENCE_FACTORS[-1])


def difference_colours(difference: Tensor, factor: int) -> Tensor:
    """Differences (N, C, H, W) -> colours (N, 3, H, W); 0 is white, and larger differences are darker red."""
    size = (factor * difference.abs().amax(1, keepdim=True)).clamp(0, 1) * 2
    white, red, dark = DIFFERENCE_COLOURS.view(3, 1, 3, 1, 1)
    return torch.where(size < 1, white + size * (red - white), red + (size - 1) * (dark - red))
