"""Films the real studio for the README: python -m docs.hero OUT.gif

In the film, parts form a face. The face gets the eyeglasses of another face, its mouth is erased and
completed in several ways, and an emoji is drawn from words. The script needs Chromium and Noto Color Emoji.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.images import to_pil
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.system.model_files import ZOO
from tests.helpers.serving import serving
from tests.helpers.studio import open_chromium

FACE, OTHER = "1F642", "1F913"  # a smiling face, and a face with eyeglasses
WORDS = "woman pilot medium dark skin tone"
SIZE = {"width": 1120, "height": 800}
SHOWN = (0, 96, 1120, 610)  # the part of the page that is filmed: left, top, right, bottom
WIDTH, COLOURS = 760, 128
TYPED = 4  # letters that are typed between two frames


def main(out: str) -> None:
    frames: list[tuple[Image.Image, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(ZOO / "emoji") as address,
        open_chromium() as browser,
    ):
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.get_by_text("Your turn").wait_for(timeout=60_000)
        page.get_by_role("button", name="Close the invitation").click()

        def shoot(milliseconds: int) -> None:
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(SHOWN)
            frames.append((picture, milliseconds))

        for code, target in ((OTHER, "to borrow"), (FACE, "to canvas")):
            page.get_by_text(target, exact=True).click()
            page.get_by_label("Picture or saved z").set_input_files(picture_of(code, Path(folder)))
            page.get_by_label("Crop of the upload").wait_for()
            page.get_by_label("Crop of the upload").select_option("no")
            page.wait_for_timeout(2500)
        page.get_by_role("button", name="Replay the drawing").click()
        until_still(page, lambda: shoot(45))
        shoot(500)
        drag(page, "b", (0.02, 0.14), (0.98, 0.48), shoot)
        shoot(700)
        page.get_by_text("Erase", exact=True).click()
        drag(page, "a", (0.2, 0.55), (0.8, 0.85), shoot)
        shoot(300)
        page.get_by_role("button", name="Finish").click()
        page.locator("#proposals button").nth(3).wait_for(timeout=60_000)
        for number in range(4):
            page.locator("#proposals button").nth(number).click()
            page.wait_for_timeout(900)
            shoot(380)
        field = page.get_by_label("What to draw")
        for end in range(TYPED, len(WORDS) + TYPED, TYPED):
            field.fill(WORDS[:end])
            shoot(60)
        page.get_by_role("button", name="Draw it").click()
        page.wait_for_timeout(600)
        until_still(page, lambda: shoot(40))
        shoot(1200)
    save(out, frames)


def until_still(page: Any, shoot: Callable[[], None]) -> None:
    """Takes frames while the page plays a drawing."""
    for _ in range(60):
        shoot()
        if not page.evaluate("playing"):
            break
        page.wait_for_timeout(120)


def drag(
    page: Any, name: str, start: tuple[float, float], end: tuple[float, float], shoot: Callable[[int], None]
) -> None:
    box = page.locator(f"#canvas-{name}").bounding_box()
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=6)
    shoot(250)
    page.mouse.up()
    page.wait_for_timeout(1500)
    shoot(100)


def picture_of(code: str, folder: Path) -> Path:
    """Writes the emoji of a code point as a PNG of 32x32 pixels."""
    source = open_source(DataConfig(source="emoji", image_size=32, binarize="none"), 0)
    for shard in (shard for split in SPLITS for shard in source.shards(split)):
        rows = shard.read()
        if code in rows.ids:
            path = folder / f"{code}.png"
            to_pil(torch.from_numpy(rows.images[rows.ids.index(code)]))[0].save(path)
            return path
    raise ValueError(f"the font has no {code}")


def save(out: str, frames: list[tuple[Image.Image, int]]) -> None:
    height = round(WIDTH * frames[0][0].height / frames[0][0].width)
    small = [frame.resize((WIDTH, height), Image.Resampling.LANCZOS) for frame, _ in frames]
    palette = small[len(small) // 2].quantize(COLOURS)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    times = [milliseconds for _, milliseconds in frames]
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True)
    print(f"{out}: {len(frames)} frames, {sum(times) / 1000:.1f} s, {Path(out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
