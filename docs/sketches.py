"""Draws sketches and how the model `emoji` completes them: python -m docs.sketches OUT.png"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

import npdraw_dist
from npdraw_dist.core.pages import arrange, enlarge, label_rows
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.schemas import CompleteRequest, Latents, ParseRequest

SKETCHES = Path(__file__).with_name("sketches.jsonl")
SIDE, IDEAS, TILE = 512, 4, 64


def sketches() -> list[dict[str, Any]]:
    """The sketches of the file, each with name, words, and strokes (colour, width, points in [0, 1])."""
    return [json.loads(line) for line in SKETCHES.read_text().splitlines()]


def picture(sketch: dict[str, Any], side: int = SIDE) -> Image.Image:
    """Draws the strokes on white paper, as the studio's canvas shows them."""
    page = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(page)
    for stroke in sketch["strokes"]:
        width = stroke["width"] * SIDE
        points = [(x * SIDE, y * SIDE) for x, y in stroke["points"]]
        pen.line(points, stroke["colour"], round(width), "curve")
        for x, y in points:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), stroke["colour"])
    return page.resize((side, side), Image.Resampling.BOX)


def begun(engine: Engine, sketch: dict[str, Any]) -> Latents:
    """The drawing z that the parser finds for a sketch."""
    file = io.BytesIO()
    picture(sketch, engine.spec.image_shape[1]).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    found, _ = engine.parse(ParseRequest(image=image, invert="no"))
    return engine.responses([found])[0].z


def finished(engine: Engine, z: Latents, words: str | None, seed: int = 0) -> Tensor:
    """The images (N, C, H, W) of IDEAS drawings that complete the sketch."""
    drawn = [place for drawn, place in zip(z.whether, z.where, strict=True) if drawn]
    given = {} if words is None else {"condition": words}
    request = CompleteRequest(z=z, keep=[], sketch=drawn, n=IDEAS, seed=seed, **given)
    return engine.complete(request).images


def main(out: str) -> None:
    """Draws a row for each sketch: the sketch, its parts, and four ideas without and with its words."""
    model = npdraw_dist.load("emoji")
    assert isinstance(model, NPDraw)
    engine, tiles, names = Engine(model), [], []
    for sketch in sketches():
        z = begun(engine, sketch)
        shown = list(engine.drawing(z).canvas)
        for words in (None, sketch["words"]):
            shown += list(finished(engine, z, words))
        tiles += [picture(sketch, TILE), *(enlarge(image, TILE) for image in shown)]
        names.append(f"{sketch['name']}\n{sketch['words']}")
    label_rows(arrange(tiles, 2 + 2 * IDEAS), names).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
