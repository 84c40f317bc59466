"""Files of a drawing to keep: a strip of its steps as PNG, and a figure for papers as SVG or PDF.

Shapes: T steps.
"""

import io
from typing import Literal

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from npdraw_dist.core.any_image import to_pil
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.measure.pictures import save_rows
from npdraw_dist.nn.npdraw import NPDraw

Kind = Literal["svg", "pdf"]

SIDE, GAP = 2.0, 0.1  # inches
OUTLINE = "#d6336c"


def strip(model: NPDraw, z: PartSequence, frames: int) -> bytes:
    """z (1, T) as a PNG: the canvas above the image, after at most `frames` of its steps."""
    drawn = z.whether[0].nonzero()[:, 0].tolist()
    count = min(frames, len(drawn))
    shown = [round((k + 1) * len(drawn) / count) for k in range(count)]  # numbers of parts
    if drawn:
        canvases = model.render(z, steps=True)[0][[drawn[parts - 1] for parts in shown]]
    else:
        canvases, shown = model.render(z), [0]
    rows = {"canvas": canvases.cpu(), "image": model.decode(canvases).cpu()}
    captions = [f"{parts} of {len(drawn)}" for parts in shown]
    file = io.BytesIO()
    save_rows(file, rows, [None, captions])
    return file.getvalue()


def figure(model: NPDraw, z: PartSequence, kind: Kind, outlines: bool) -> bytes:
    """z (1, T) as a vector file: canvas and image, their pixels sharp at any size. outlines: of each part."""
    canvas = model.render(z)
    page = Figure(figsize=(2 * SIDE + GAP, SIDE))
    width = SIDE / (2 * SIDE + GAP)
    for number, picture in enumerate(to_pil(canvas) + to_pil(model.decode(canvas))):
        axes = page.add_axes((number * (1 - width), 0, width, 1))
        axes.set_axis_off()
        axes.imshow(picture.convert("RGB"), interpolation="none")  # colour maps round some greys
    if outlines:
        side, drawn = model.grid.patch, z.whether[0].cpu()
        corners = (model.grid.corners[z.where[0].cpu()[drawn]] - 0.5).tolist()  # a pixel is around its centre
        frames = [Rectangle((column, row), side, side) for row, column in corners]
        page.axes[0].add_collection(
            PatchCollection(frames, facecolor="none", edgecolor=OUTLINE, linewidth=0.5), autolim=False
        )
    file = io.BytesIO()
    dates = {"Date": None} if kind == "svg" else {"CreationDate": None}
    page.savefig(file, format=kind, transparent=True, metadata=dates)
    return file.getvalue()
