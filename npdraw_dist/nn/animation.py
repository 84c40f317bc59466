"""Makes animated GIFs that show drawings part by part, or any other frames.

Shapes: B batch, T steps, C channels (1 or 3), h x w canvas, H x W image.
"""

import io
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from npdraw_dist.core.pages import (
    INK,
    OUTLINE,
    PAPER,
    arrange,
    enlarge,
    frame,
    label_rows,
    tile_side,
    with_title,
)

ANIMATED = 8  # largest number of samples in an animation
GROWING_FRAMES = 40  # largest number of frames that add parts, between the first and the last frame
FIRST_FRAME_MS, LAST_FRAME_MS = 1200, 3000
MAX_GIF_BYTES = 1_000_000
GIF_GREYS = 128  # number of greys in the palette that most frames share; more would make the file larger
FIXED = (OUTLINE, PAPER, INK, (0, 0, 0), (255, 255, 255))  # exact colours; black and white are backgrounds
PALETTE_PIXELS = 60_000  # number of pixels from which a palette's colours are chosen


def generation_gif(
    steps: Tensor,
    whether: Tensor,
    corners: Tensor,
    sides: Tensor,
    images: Tensor,
    most_frames: int = GROWING_FRAMES,
) -> bytes:
    """Makes a looping GIF of at most 8 samples, with a row of canvases above a row of decoded images.

    steps: (B, T, C, h, w), the canvas after each step. whether: (B, T) bool, true if the step draws a part.
    corners: (B, T, 2), the top-left pixel (row, column) of this part. sides: (B, T), the side of this part in
    pixels. images: (B, T, C, H, W), the image decoded after each step.

    The first frame, which a web page shows before the GIF plays, and the last frame, which is shown for
    longer, contain the finished pictures. The frames between, at most `most_frames`, add the parts of each
    sample, and outline new parts. A GIF over 1 MB is made again with fewer frames, then fewer samples.
    """
    boxes = torch.cat([corners, corners + sides[..., None]], -1)
    samples = min(len(steps), ANIMATED)
    while True:
        steps, whether, boxes, images = (tensor[:samples].cpu() for tensor in (steps, whether, boxes, images))
        for most in (most_frames, max(most_frames // 2, 1)):
            data = gif(_frames(steps, whether, boxes, images, most), steps.shape[2] == 1, poster=True)
            if len(data) <= MAX_GIF_BYTES:
                return data
        if samples == 1:
            return data
        samples //= 2


def _frames(steps: Tensor, whether: Tensor, boxes: Tensor, images: Tensor, most: int) -> list[Image.Image]:
    """The RGB frames of `generation_gif`. boxes: (B, T, 4), each as (top, left, bottom, right)."""
    batch, length = whether.shape
    assert steps.shape[:2] == boxes.shape[:2] == images.shape[:2] == (batch, length)
    tile = tile_side(images)
    scale = tile // max(steps.shape[-2:])
    drawn = [row.nonzero()[:, 0].tolist() for row in whether]
    parts = max(map(len, drawn))
    at_once = max(-(-parts // most), 1)

    def page(now: Sequence[int], new: Sequence[Sequence[int]], title: str) -> Image.Image:
        """Shows each sample's canvas and image after its step in `now`, and outlines its `new` parts."""
        shown = [values[index, step] for values in (steps, images) for index, step in enumerate(now)]
        tiles = [enlarge(image, tile) for image in shown]
        for index, mine in enumerate(new):
            for step in mine:
                frame(tiles[index], boxes[index, step].tolist(), scale, width=2 if at_once == 1 else 1)
        return with_title(label_rows(arrange(tiles, batch), ["canvas", "image"]), title)

    finished = page([length - 1] * batch, [], "finished")
    frames = [finished]
    for start in range(0, parts, at_once):
        stop = min(start + at_once, parts)
        new = [mine[start:stop] for mine in drawn]
        now = [mine[-1] if mine else length - 1 for mine in new]  # without new parts, show the last step
        frames.append(page(now, new, f"part {stop} of {parts}"))
    return [*frames, finished]


def gif(frames: Sequence[Image.Image], grey: bool, poster: bool = False) -> bytes:
    """Makes a looping GIF whose last frame, and with `poster` also its first frame, is shown for longer.

    The frames shown for longer have their own palettes, which are exact if `grey`. All other frames share one
    palette, so that colours do not flicker.
    """
    shared = _palette(frames, grey)
    paletted = [_indexed(frame, shared) for frame in frames]
    for index in (0, -1) if poster else (-1,):
        # A grey frame without coloured outlines has at most 256 greys, which mode L stores exactly.
        last = frames[index]
        paletted[index] = last.convert("L") if grey else _indexed(last, _palette([last], grey))
    durations = [int(np.clip(6000 / len(frames), 80, 400))] * (len(frames) - 1) + [LAST_FRAME_MS]
    if poster and len(frames) > 1:
        durations[0] = FIRST_FRAME_MS
    file, first, rest = io.BytesIO(), paletted[0], paletted[1:]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, disposal=1)
    return file.getvalue()


def _palette(frames: Sequence[Image.Image], grey: bool) -> Image.Image:
    """Returns an image whose palette has the FIXED colours, then greys, or colours taken from the frames."""
    palette = Image.new("P", (1, 1))
    if grey:
        colours = np.linspace(0, 255, GIF_GREYS).round().astype(int).repeat(3).tolist()
    else:
        pixels = np.concatenate([np.asarray(frame).reshape(-1, 3) for frame in frames])
        some = pixels[np.linspace(0, len(pixels) - 1, PALETTE_PIXELS).astype(int)]
        # The k-means step after the median cut halves the error.
        reduced = Image.fromarray(some[None]).quantize(240, Image.Quantize.MEDIANCUT, kmeans=1)
        colours = reduced.getpalette() or []
    palette.putpalette([*chain.from_iterable(FIXED), *colours])
    return palette


def _indexed(frame: Image.Image, palette: Image.Image) -> Image.Image:
    """Converts a frame to colours of `palette`. FIXED colours are exact; others are rounded to steps of 4."""
    pixels = np.asarray(frame)
    indices = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    for index, colour in enumerate(FIXED):
        indices[(pixels == colour).all(-1)] = index
    exact = Image.fromarray(indices)
    exact.putpalette(palette.getpalette() or [])
    return exact
