"""Runs docs/npdraw_in_eighty_lines.py and draws its eight steps: python docs/eighty_pictures.py FOLDER"""

import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SCRIPT = Path(__file__).with_name("npdraw_in_eighty_lines.py")
SIDE, LABEL, COLUMNS = 56, 104, 10  # pixels of a tile, pixels of the labels at the left, tiles of a row
GREY, PAGE = 0.5, 208  # between places, in [0, 1]; of the page, in 0 to 255


def spaced(parts: Tensor) -> Tensor:
    """Parts (B, 36, 25) at their places, with a grey line between neighbours: (B, 1, 35, 35)."""
    return F.fold((parts - GREY).mT, 35, 5, stride=6) + GREY


def sheet(path: Path, rows: Mapping[str, Tensor], notes: Mapping[str, list[str]] | None = None) -> None:
    """Writes a row of images (B, 1, h, w) for each label; notes: texts below the images of a row."""
    step = SIDE + 6
    heights = [step + (18 if notes and label in notes else 0) for label in rows]
    page = Image.new("L", (LABEL + COLUMNS * step, sum(heights)), PAGE)
    pen, top = ImageDraw.Draw(page), 3
    for (label, images), height in zip(rows.items(), heights, strict=True):
        pen.text((4, top + SIDE / 2), label, 0, anchor="lm", font_size=15)
        for column, image in enumerate(images[:COLUMNS]):
            pixels = Image.fromarray((255 * image[0].clamp(0, 1)).byte().numpy())
            left = LABEL + column * step
            page.paste(pixels.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            if notes and label in notes:
                pen.text(
                    (left + SIDE / 2, top + SIDE + 9), notes[label][column], 0, anchor="mm", font_size=13
                )
        top += height
    page.save(path, optimize=True)


@torch.no_grad()
def main(made: Mapping[str, Any], folder: Path) -> None:
    """made: the names that the file defines."""
    folder.mkdir(parents=True, exist_ok=True)
    bank, whether, what, images = (made[name] for name in ("bank", "whether", "what", "grey"))
    images = images[made["test"]]
    grey = images[torch.arange(5, 180, 18)]  # one of each digit, as they are in order
    some = (grey >= 0.5).float()
    sheet(folder / "1-images.png", {"grey": grey, "x": some, "cut at places": spaced(made["cut"](some).mT)})

    ordered = bank[bank.sum(1).argsort()].view(-1, 1, 5, 5)
    lines = ordered.split(COLUMNS)
    sheet(
        folder / "2-bank.png",
        {f"b{10 * row + 1} to b{10 * row + 10}": line for row, line in enumerate(lines)},
    )

    z = made["parse"](some)
    parts = z[0][..., None] * bank[z[1]]
    found = {"x": some, "nearest parts": spaced(parts), "canvas": made["decode"](*z)[0]}
    sheet(folder / "3-parse.png", found)

    drawn, steps = whether[..., None] * bank[what], [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    seen = (torch.arange(36) < torch.tensor(steps)[:, None])[..., None]
    grown = {f"drawing {n + 1}": spaced(torch.where(seen, drawn[n], GREY)) for n in range(4)}
    sheet(folder / "4-prior.png", grown, {"drawing 4": [f"step {step}" for step in steps]})

    q = made["encoder"](some).mT
    chance = q[..., :1].sigmoid().expand(-1, -1, 25)
    draws = {f"canvas of z{n}": made["decode"](*made["draw"](q))[0] for n in "123"}
    sheet(folder / "5-posterior.png", {"x": some, "q(whether|x)": spaced(chance), **draws})

    canvas, p = made["decode"](*made["draw"](q))
    sheet(folder / "6-decoder.png", {"x": some, "canvas of z": canvas, "mean of p(x|z)": p.mean})

    nll = made["nll"]
    order = nll.argsort()
    rows, notes = {}, {}
    for name, index in (("fewest nats", order[:COLUMNS]), ("most nats", order[-COLUMNS:])):
        rows[name], notes[name] = (
            (images[index] >= 0.5).float(),
            [f"{value:.0f}" for value in nll[index].tolist()],
        )
    sheet(folder / "7-bound.png", rows, notes)

    found = {}
    for n in range(2):
        some_of = slice(COLUMNS * n, COLUMNS * (n + 1))
        found |= {f"canvas {n + 1}": made["canvas"][some_of], f"sample {n + 1}": made["p_x"].mean[some_of]}
    sheet(folder / "8-samples.png", found)


if __name__ == "__main__":
    main(runpy.run_path(str(SCRIPT)), Path(sys.argv[1]))
