"""Each route of the API against the model itself, in Python. No Ray."""

import base64
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageSequence

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.sample import ALIGNED_FRAMES
from npdraw_dist.serve.engine import Engine, open_engine
from npdraw_dist.serve.schemas import Latents
from tests.helpers.serving import LATENTS, Json, Served
from tests.helpers.studio_models import COLOUR, as_bytes, pixels, png_of, save_model
from tests.helpers.tiny_models import random_drawings, tiny_model, tiny_spec


def text_of(png: bytes) -> str:
    return base64.b64encode(png).decode()


def held(z: Json, places: list[int]) -> set[tuple[int, int]]:
    steps = zip(z["whether"], z["where"], z["what"], strict=True)
    return {(where, what) for whether, where, what in steps if whether and where in places}


def equal(z: Json, other: PartSequence) -> bool:
    other = other.canonical()
    return all(z[name] == getattr(other, name)[0].tolist() for name in LATENTS)


def picture(served: Served, most: int = 255) -> np.ndarray:
    """A random picture of the model's size, (H, W, C)."""
    channels, height, width = served.model.spec.image_shape
    values = np.random.default_rng(0).integers(0, most + 1, (height, width, channels), dtype=np.uint8)
    return values * (255 // most)


def file_of(array: np.ndarray) -> bytes:
    return png_of(array[..., 0] if array.shape[2] == 1 else array)


def test_facts_and_bank(served: Served) -> None:
    facts, grid, parts = served.get("model"), served.model.grid, served.model.bank.parts
    assert (facts["rows"], facts["columns"], facts["stride"]) == (grid.rows, grid.columns, grid.stride)
    assert facts["test_images"] == (50 if facts["order"] == "aligned" else 0)
    bank = served.get("bank")
    sheet, side, order = pixels(bank["sheet"]), bank["patch"], bank["by_looks"]
    for part, expected in enumerate(parts):
        top, left = (side * value for value in divmod(part, bank["columns"]))
        np.testing.assert_array_equal(sheet[:, top : top + side, left : left + side], as_bytes(expected))
    assert sorted(order) == list(range(bank["size"])) == list(range(len(parts)))

    def apart(index: list[int]) -> float:
        return float((parts[index[1:]] - parts[index[:-1]]).square().sum())

    assert apart(order) < np.mean([apart(torch.randperm(len(parts)).tolist()) for _ in range(200)])


def test_samples_are_those_of_python(served: Served) -> None:
    drawing = served.post("sample", seed=5, temperature=0.7)
    assert equal(drawing["z"], served.model.sample_prior(1, torch.Generator().manual_seed(5), 0.7))
    served.check(drawing)
    np.testing.assert_array_equal(
        pixels(drawing["image"]), as_bytes(served.model.draw(1, seed=5, temperature=0.7).images[0])
    )
    assert served.post("decode", z=drawing["z"]) == drawing
    assert served.post("sample", seed=6)["canvas"] != drawing["canvas"]
    gallery = served.get("gallery", n=3, seed=5)["drawings"]
    for drawing, image in zip(gallery, served.model.sample(3, seed=5), strict=True):
        served.check(drawing)
        np.testing.assert_array_equal(pixels(drawing["image"]), as_bytes(image))


def test_the_empty_region_is_a_and_the_whole_grid_is_b(served: Served) -> None:
    a, b = (served.post("sample", seed=seed) for seed in (1, 2))
    both = {"a": a["z"], "b": b["z"]}
    assert served.post("compose", **both, places=[])["image"] == a["image"]
    whole = served.post("compose", **both, places=served.everywhere)
    assert whole["canvas"] == b["canvas"]
    if served.model.appearance is None:  # else what is nowhere drawn stays that of A
        assert whole["image"] == b["image"]
    half = served.post("compose", **both, places=served.everywhere[::2])
    served.check(half)
    assert half["canvas"] not in (a["canvas"], b["canvas"])


def test_edits(served: Served) -> None:
    def edited(z: Json, kind: str, **how: int | list[int]) -> Json:
        return served.post("edit", z=z, edit={"kind": kind, **how})

    emptied = edited(served.post("sample", seed=1)["z"], "remove", places=served.everywhere)
    assert (emptied["parts"], emptied["dropped"], pixels(emptied["canvas"]).max()) == (0, 0, 0)
    put = edited(emptied["z"], "put", place=1, part=4)
    moved = edited(put["z"], "move", source=1, target=3)
    swapped = edited(moved["z"], "swap", first=3, second=1)
    assert [held(one["z"], served.everywhere) for one in (put, moved)] == [{(1, 4)}, {(3, 4)}]
    assert all(swapped["z"][name] == put["z"][name] for name in LATENTS)
    assert swapped["canvas"] == put["canvas"]
    served.check(put)


def test_parts_that_give_way_are_counted(tmp_path: Path) -> None:
    served = Served(save_model(tmp_path, COLOUR))
    full = {"whether": [True] * 12, "where": list(range(12)), "what": [1] * 12}
    put = served.post("edit", z=full, edit={"kind": "put", "place": 20, "part": 4})
    assert (put["parts"], put["dropped"]) == (12, 1)
    other = {**full, "where": list(range(20, 25)) + [0] * 7, "whether": [True] * 5 + [False] * 7}
    both = served.post("compose", a=full, b=other, places=[*range(20, 25)])
    assert (both["parts"], both["dropped"]) == (12, 5)


def test_completions_keep_what_is_kept_also_nothing(served: Served) -> None:
    z, keep = served.post("sample", seed=1)["z"], [0, 1, 2, 7, 8, 13]
    request = {"z": z, "keep": keep, "n": 5, "seed": 9, "temperature": 1.5}
    drawings = served.post("complete", **request)["drawings"]
    assert len(drawings) == 5
    for drawing in drawings:
        assert held(drawing["z"], keep) == held(z, keep)
        served.check(drawing)
    assert len({drawing["canvas"] for drawing in drawings}) > 1
    assert served.post("complete", **request)["drawings"] == drawings
    (same,) = served.post("complete", z=z, keep=served.everywhere, n=1)["drawings"]
    assert same["z"] == served.post("decode", z=z)["z"]


def test_where_the_prior_draws_next(served: Served) -> None:
    z = served.post("sample", seed=1)["z"]
    found = served.post("next", z=z, n=3)
    assert len(found["places"]) == len(served.everywhere)
    assert sum(found["places"]) + found["stop"] == pytest.approx(1)
    assert found["place"] == int(np.argmax(found["places"]))
    chances = [part["probability"] for part in found["parts"]]
    assert len(chances) == 3
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1 + 1e-6
    assert served.post("next", z=z, place=4, n=32)["place"] == 4
    assert served.post("next", z=z, n=3) == found


def test_from_a_to_b_place_by_place(served: Served) -> None:
    a, b = (served.post("sample", seed=seed) for seed in (1, 2))
    drawings = served.post("interpolate", a=a["z"], b=b["z"])["drawings"]
    assert (drawings[0]["canvas"], drawings[-1]["canvas"]) == (a["canvas"], b["canvas"])
    assert len(drawings) > 2
    same = served.post("interpolate", a=a["z"], b=a["z"])["drawings"]
    assert [drawing["canvas"] for drawing in same] == [a["canvas"]]


def test_examples_are_scored_by_the_prior_and_open_no_test_image(grey: Served, colour: Served) -> None:
    for served in (grey, colour):
        examples = served.get("examples")["examples"]
        assert len(examples) >= 4
        for example in examples:
            drawing = example["drawing"]
            served.check(drawing)
            expected = drawing["log_prior"] / drawing["parts"]
            assert example["log_prior_per_part"] == pytest.approx(expected, abs=1e-3)
        assert len({example["drawing"]["canvas"] for example in examples}) == len(examples)
        assert served.get("examples")["examples"] == examples
    engine = open_engine(str(grey.folder))
    engine.examples()
    assert engine.valid_images is not None
    assert engine.valid_images._parses is not None
    assert len(engine.valid_images) == 80  # of the validation split
    assert engine.test_images is not None
    assert not engine.test_images._opened


def test_a_canvas_drawn_by_hand_is_parsed(served: Served) -> None:
    model, drawing = served.model, served.post("sample", seed=4)
    parsed = served.post("parse", image=drawing["canvas"], invert="no")
    canvas = torch.tensor(pixels(drawing["canvas"]))[None]
    assert equal(parsed["z"], Parser(model.bank, model.grid, model.spec.steps, model.spec.order)(canvas).z)
    served.check(parsed)
    np.testing.assert_array_equal(pixels(parsed["original"]), canvas[0].numpy())
    image = picture(served)  # of the images' size is averaged to the canvas's
    original = pixels(served.post("parse", image=text_of(file_of(image)), invert="no")["original"])
    channels, rows, columns = original.shape
    means = image.transpose(2, 0, 1).reshape(channels, rows, -1, columns, image.shape[1] // columns)
    assert np.abs(original - means.mean((2, 4))).max() <= 0.5


def test_dark_strokes_of_any_size_are_parsed(grey: Served) -> None:
    page = np.full((280, 280), 255, np.uint8)
    page[100:180, 60:220] = 0
    parsed = grey.post("parse", image=text_of(png_of(page)))
    expected = np.zeros((28, 28), bool)
    expected[10:18, 6:22] = True
    np.testing.assert_array_equal(pixels(parsed["original"])[0] > 128, expected)  # its edges are soft
    assert grey.post("parse", image=text_of(png_of(255 - page)), invert="auto")["z"] == parsed["z"]
    whole = grey.post("parse", image=text_of(png_of(page)), invert="no")
    assert pixels(whole["original"]).mean() > 127


def test_a_picture_is_encoded(served: Served) -> None:
    array = picture(served, 1)
    drawing = served.upload(file_of(array))
    expected = served.model.encode(torch.tensor(array).permute(2, 0, 1)[None] / 255)
    assert pixels(drawing["original"]).tolist() == array.transpose(2, 0, 1).tolist()
    np.testing.assert_array_equal(pixels(drawing["canvas"]), as_bytes(served.model.render(expected)[0]))
    served.check(drawing)
    inverted = served.upload(file_of(array), "?invert=yes&crop=no")
    assert pixels(inverted["original"]).tolist() == (255 - array).transpose(2, 0, 1).tolist()


def test_an_upload_is_placed(grey: Served) -> None:
    page = np.full((100, 200), 255, np.uint8)
    page[10:30, 30:90] = 0
    placed = grey.upload(png_of(page), "")
    grey.check(placed)
    assert placed["placement"]["inverted"]
    left, top, right, bottom = placed["placement"]["cropped"]
    assert right - left == bottom - top >= 60
    assert ((left + right) // 2, (top + bottom) // 2) == (60, 20)
    assert placed["placement"]["scaled"] == pytest.approx(28 / (right - left))
    plain = {"inverted": False, "cropped": [50, 0, 150, 100], "scaled": 0.28}
    assert grey.upload(png_of(page))["placement"] == plain


def test_a_test_image_is_encoded(grey: Served) -> None:
    drawing = grey.get("test/49")
    assert pixels(drawing["original"]).max() == 0
    grey.check(drawing)
    assert grey.client.get("/v1/test/50").status_code == 404


def test_the_steps_end_in_the_drawing(served: Served) -> None:
    drawing = served.post("sample", seed=1)
    frames = served.post("steps", z=drawing["z"])["frames"]
    assert len(frames) == drawing["parts"] + 1
    assert pixels(frames[0]["canvas"]).max() == 0
    assert frames[-1]["canvas"] == drawing["canvas"]
    assert np.abs(pixels(frames[-1]["image"]).astype(int) - pixels(drawing["image"])).max() <= 1
    for before, after in itertools.pairwise(frames):
        changed = (pixels(before["canvas"]) != pixels(after["canvas"])).any(0)
        top, left = served.model.grid.corners[after["place"]].tolist()
        side = served.model.grid.patch
        changed[top : top + side, left : left + side] = False
        assert not changed.any()


def test_the_first_and_last_frame_of_a_grey_gif_are_the_sample_exactly(grey: Served) -> None:
    drawing = grey.post("sample", seed=3)
    with Image.open(io.BytesIO(grey.file("steps.gif", z=drawing["z"]))) as gif:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    at_once = -(-drawing["parts"] // ALIGNED_FRAMES)
    assert len(frames) == -(-drawing["parts"] // at_once) + 2  # it is the first and the last frame
    canvas, image = (pixels(drawing[name])[0].repeat(4, 0).repeat(4, 1) for name in ("canvas", "image"))
    right = frames[-1].shape[1] - 4 - 112
    for frame in (frames[0], frames[-1]):
        np.testing.assert_array_equal(frame[24:136, right : right + 112], canvas)
        np.testing.assert_array_equal(frame[140:252, right : right + 112], image)


def test_a_strip_ends_in_the_drawing(served: Served) -> None:
    z = served.post("sample", seed=1)["z"]
    answer = served.client.post("/v1/strip.png", json={"z": z, "frames": 4})
    assert answer.headers["content-type"] == "image/png"
    assert "attachment" in answer.headers["content-disposition"]
    with Image.open(io.BytesIO(answer.content)) as picture:
        page = np.asarray(picture.convert("RGB"))
    canvas = pixels(served.post("decode", z=z)["canvas"]).transpose(1, 2, 0)
    canvas = np.broadcast_to(canvas, (*canvas.shape[:2], 3))
    shown = [canvas.repeat(scale, 0).repeat(scale, 1) for scale in range(1, 13)]
    assert any(ends_in(page, one) for one in shown)
    empty = {**z, "whether": [False] * len(z["whether"])}
    assert served.client.post("/v1/strip.png", json={"z": empty}).status_code == 200


def ends_in(page: np.ndarray, picture: np.ndarray) -> bool:
    """Whether the picture is the last of the upper row of a page, both (H, W, 3)."""
    height, width, _ = picture.shape
    corner = page[: height + 12, -width - 12 :]
    if corner.shape[0] < height or corner.shape[1] < width:
        return False
    return bool((sliding_window_view(corner, picture.shape) == picture).all((3, 4, 5)).any())


def test_figures_for_papers_hold_the_pixels(served: Served) -> None:
    drawing = served.post("sample", seed=1)
    for kind, begins in (("svg", b"<?xml"), ("pdf", b"%PDF-1.")):
        path = f"drawing.{kind}"
        framed, plain = (served.file(path, z=drawing["z"], outlines=lines) for lines in (True, False))
        assert framed.startswith(begins)
        assert len(framed) > len(plain)
    svg = served.file("drawing.svg", z=drawing["z"], outlines=False)
    for name, text in zip(("canvas", "image"), svg.split(b"base64,")[1:3], strict=True):
        shown = base64.b64decode(text.split(b'"')[0].replace(b"\n", b""))
        found = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).transpose(2, 0, 1)
        expected = np.broadcast_to(pixels(drawing[name]), found.shape)
        assert np.array_equal(found, expected) or np.array_equal(found[:, ::-1], expected)


def test_a_model_whose_canvas_is_white() -> None:
    model = tiny_model(tiny_spec("raster", image_shape=(1, 6, 6), steps=4, background="white"))
    engine = Engine(model)
    assert engine.describe().background == "white"
    z = random_drawings(model.spec, 8)
    z = z[z.whether.any(1)][:1]
    frames = engine.frames(Latents(**{k: v[0].tolist() for k, v in vars(z).items()})).frames
    assert len(frames) == int(z.whether.sum()) + 1
    assert (pixels(frames[0].canvas) == 255).all()
    np.testing.assert_array_equal(pixels(frames[-1].canvas), as_bytes(model.render(z)[0]))
    clear = png_of(np.zeros((6, 6, 4), np.uint8))
    assert (engine.place_upload(clear, "no", crop=False)[0] == 255).all()
