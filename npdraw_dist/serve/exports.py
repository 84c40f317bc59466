"""Files that a user keeps of a drawing: its steps as GIF or strip, and a figure for papers as PDF.

A drawing is `Drawings` of one image. Shapes: N steps that draw, C channels, h x w canvas.
"""

import io

import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from npdraw_dist.core.images import to_pil
from npdraw_dist.core.pages import rows_png
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.npdraw import NPDraw

SIDE, GAP = 2.0, 0.1  # inches
OUTLINE = "#d6336c"


def steps(model: NPDraw, drawing: Drawings) -> tuple[list[int], Tensor, Tensor]:
    """The N steps that draw, and the canvas (N + 1, C, h, w) and the image before and after each of them."""
    drawn = drawing.z.whether[0].nonzero()[:, 0]
    canvases = model.render(drawing.z, steps=True)[0]
    canvases = torch.cat([torch.full_like(canvases[:1], model.grid.background), canvases[drawn]])
    u = None if drawing.u is None else drawing.u.expand(len(canvases), *drawing.u.shape[1:])
    return drawn.tolist(), canvases, model.decode(canvases, u)


def gif(model: NPDraw, drawing: Drawings) -> bytes:
    """The drawing step by step as an animation."""
    return model.trace(drawing.z, u=drawing.u).gif()


def strip(model: NPDraw, drawing: Drawings, frames: int) -> bytes:
    """The canvas above the image, after at most `frames` of the drawing's steps, as a PNG."""
    drawn, canvases, images = steps(model, drawing)
    count = min(frames, len(drawn))
    shown = [round((k + 1) * len(drawn) / count) for k in range(count)] or [0]  # numbers of parts
    captions = [f"{parts} of {len(drawn)}" for parts in shown]
    return rows_png({"canvas": canvases[shown].cpu(), "image": images[shown].cpu()}, [None, captions])


def figure(model: NPDraw, drawing: Drawings, outlines: bool) -> bytes:
    """Canvas and image as a PDF with sharp pixels at any size. outlines: draw a frame around each part."""
    page = Figure(figsize=(2 * SIDE + GAP, SIDE))
    width = SIDE / (2 * SIDE + GAP)
    for number, picture in enumerate(to_pil(drawing.canvas) + to_pil(drawing.images)):
        axes = page.add_axes((number * (1 - width), 0, width, 1))
        axes.set_axis_off()
        axes.imshow(picture.convert("RGB"), interpolation="none")  # a colour map would round some greys
    if outlines:
        side, where = model.grid.patch, drawing.z.where[drawing.z.whether].cpu()
        corners = (model.grid.corners[where] - 0.5).tolist()  # axes place a pixel around its centre
        frames = [Rectangle((column, row), side, side) for row, column in corners]
        page.axes[0].add_collection(
            PatchCollection(frames, facecolor="none", edgecolor=OUTLINE, linewidth=0.5), autolim=False
        )
    file = io.BytesIO()
    page.savefig(file, format="pdf", transparent=True, metadata={"CreationDate": None})
    return file.getvalue()
