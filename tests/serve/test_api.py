"""Each route of the API against the model: Python, `npdraw edit` and the API give the same. No Ray."""

import base64
import io
import itertools
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.edit import __main__ as edit
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.trained_models import load_npdraw
from npdraw_dist.serve import proposals
from npdraw_dist.serve.engine import Engine, open_engine
from npdraw_dist.serve.schemas import Latents
from tests.helpers.pixels import enlarged, found, rgb
from tests.helpers.serving import LATENTS, Json, Served
from tests.helpers.studio_models import as_bytes, pixels, png_of
from tests.helpers.tiny_models import tiny_model, tiny_spec


def text_of(png: bytes) -> str:
    return base64.b64encode(png).decode()


def equal(z: Json, other: PartSequence) -> bool:
    other = other.canonical()
    return all(z[name] == getattr(other, name)[0].tolist() for name in LATENTS)


def picture(served: Served, seed: int = 0) -> np.ndarray:
    """A random picture of the model's size, (H, W, C). A grey one is black and white, as digits are."""
    channels, height, width = served.model.spec.image_shape
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels == 3 else values // 128 * 255


def as_input(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array).permute(2, 0, 1)[None]


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


def check_same(served: Served, found: list[Json], expected: Drawings, off_by: int = 0) -> None:
    """z and pixels are those of Python. If there is a u, the pixels are not those of the canvas alone."""
    for row, drawing in enumerate(found):
        served.check(drawing)
        assert equal(drawing["z"], expected.z[row : row + 1])
        off = pixels(drawing["image"]).astype(int) - as_bytes(expected.images[row])
        assert np.abs(off).max() <= off_by
    assert len(found) == len(expected)
    if expected.u is not None:
        alone = as_bytes(served.model.decode(expected.canvas, None)[0])
        assert (pixels(found[0]["image"]) != alone).any()


def test_the_hash_of_a_model_is_that_of_its_bank_and_settings(served: Served) -> None:
    """The page refuses drawings with another hash."""
    model, hashed = served.model, served.get("model")["hash"]
    assert Engine(model).describe().hash == hashed
    other = load_npdraw(str(served.folder))
    other.set_bank(PartBank(1 - model.bank.parts))
    assert Engine(other).describe().hash != hashed
    settings = model.spec.model_copy(update={"binarize": "threshold"})
    other = NPDraw(settings)
    other.set_bank(model.bank)
    assert Engine(other).describe().hash != hashed


def test_samples_are_those_of_python(served: Served) -> None:
    drawing = served.post("sample", seed=5, temperature=0.7)
    check_same(served, [drawing], served.model.draw(1, seed=5, temperature=0.7))
    assert served.post("decode", z=drawing["z"]) == drawing
    assert served.post("sample", seed=6)["canvas"] != drawing["canvas"]
    gallery = served.get("gallery", n=3, seed=5, temperature=0.7)["drawings"]
    check_same(served, gallery, served.model.draw(3, seed=5, temperature=0.7))


def test_a_condition_is_drawn_as_in_python(classes: Served) -> None:
    facts = classes.get("model")
    assert (facts["condition"], facts["vocabulary"]) == ("class", ["cat", "crow", "dog"])
    assert facts["guidance"] == classes.model.spec.guidance
    for guidance in ({}, {"guidance": 1.0}, {"guidance": 2.5}):
        condition: dict[str, Any] = {"condition": "dog", **guidance}
        drawing = classes.post("sample", seed=5, **condition)
        check_same(classes, [drawing], classes.model.draw(1, seed=5, **condition))
        gallery = classes.get("gallery", n=3, seed=5, **condition)["drawings"]
        check_same(classes, gallery, classes.model.draw(3, seed=5, **condition))
    drawn = [classes.post("sample", seed=5, condition=name)["z"] for name in ("cat", "crow", "dog")]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]
    keep = [0, 1, 2, 3]
    done = classes.post("complete", z=drawing["z"], keep=keep, n=2, seed=1, condition="cat")["drawings"]
    begun = classes.replica.engine.drawing(Latents(**drawing["z"])).repeated(2)
    expected = classes.model.complete(
        begun, keep, temperature=1.0, effort=proposals.QUICK, seed=1, condition="cat"
    )
    check_same(classes, done, expected)


def test_an_unknown_condition_is_refused(classes: Served, grey: Served) -> None:
    assert "it knows cat, crow, dog" in classes.post("sample", 422, condition="dot")["detail"]
    assert "takes no condition" in grey.post("sample", 422, condition="dog")["detail"]
    assert grey.get("model")["condition"] == "none"


def test_surprise_is_that_of_python(served: Served) -> None:
    z = served.post("sample", seed=4)["z"]
    found = served.post("surprise", z=z)["places"]
    expected = served.model.surprise(served.model.draw(1, seed=4)).flatten()
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert len(found) == served.model.grid.places


def test_an_upload_has_the_same_pixels_three_ways(served: Served, tmp_path: Path) -> None:
    content = file_of(picture(served))
    (tmp_path / "a.png").write_bytes(content)
    drawing = served.upload(content)
    assert pixels(drawing["original"]).tolist() == picture(served).transpose(2, 0, 1).tolist()
    inverted = served.upload(content, "?invert=yes&crop=no")
    assert (pixels(inverted["original"]) == 255 - pixels(drawing["original"])).all()
    check_same(served, [drawing], served.model.as_drawings(as_input(picture(served))))
    again = served.post("decode", z=drawing["z"])
    assert {**again, "original": drawing["original"], "placement": drawing["placement"]} == drawing
    flags = ["--model", str(served.folder), "--a", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    edit.main([*flags, "--remove", "0:0,0:0"])
    edited = pixels((tmp_path / "out" / "edited.png").read_bytes())
    np.testing.assert_array_equal(edited, pixels(drawing["image"]))


def test_edits_of_an_upload_are_those_of_python(served: Served) -> None:
    model, pictures = served.model, [picture(served, seed) for seed in (0, 1)]
    a, b = (model.as_drawings(as_input(array)) for array in pictures)
    z_a, z_b = (served.upload(file_of(array))["z"] for array in pictures)
    keep = list(range(9))
    composed = served.post("compose", a=z_a, b=z_b, places=keep)
    check_same(served, [composed], model.compose(a, b, keep))
    edits: list[tuple[Json, Json]] = [
        ({"kind": "remove", "places": [3, 4]}, {"remove": [3, 4]}),
        ({"kind": "put", "place": 1, "part": 4}, {"put": {1: 4}}),
        ({"kind": "move", "source": 1, "target": 3}, {"move": {1: 3}}),
        ({"kind": "swap", "first": 1, "second": 3}, {"swap": {1: 3}}),
    ]
    for one, how in edits:
        check_same(served, [served.post("edit", z=z_a, edit=one)], model.edit(a, **how))
    way = served.post("interpolate", a=z_a, b=z_b)["drawings"]
    check_same(served, way, a.towards(b), 1)
    completed = served.post("complete", z=z_a, keep=keep, n=2, seed=9, temperature=1.5)["drawings"]
    expected = model.complete(a.repeated(2), keep, temperature=1.5, effort=proposals.QUICK, seed=9)
    check_same(served, completed, expected, 1)


def test_parts_that_give_way_are_counted(colour: Served) -> None:
    full = {"whether": [True] * 12, "where": list(range(12)), "what": [1] * 12}
    put = colour.post("edit", z=full, edit={"kind": "put", "place": 20, "part": 4})
    assert (put["parts"], put["dropped"]) == (12, 1)
    other = {**full, "where": list(range(20, 25)) + [0] * 7, "whether": [True] * 5 + [False] * 7}
    both = colour.post("compose", a=full, b=other, places=[*range(20, 25)])
    assert (both["parts"], both["dropped"]) == (12, 5)


def parts_at(z: Json, places: list[int]) -> set[tuple[int, int]]:
    steps = zip(z["whether"], z["where"], z["what"], strict=True)
    return {(where, what) for whether, where, what in steps if whether and where in places}


def test_a_sketch_is_followed_or_stays(served: Served) -> None:
    """In a free order the model keeps the parts drawn by hand."""
    z = served.post("sample", seed=1)["z"]
    drawn = sorted({where for where, _ in parts_at(z, served.everywhere)})
    sketch, keep = drawn[1:], drawn[:1]
    found = served.post("complete", z=z, keep=keep, sketch=sketch, n=4, seed=2)["drawings"]
    stay = [parts_at(drawing["z"], sketch) == parts_at(z, sketch) for drawing in found]
    assert all(parts_at(drawing["z"], keep) == parts_at(z, keep) for drawing in found)
    assert all(stay) != served.model.spec.aligned


def test_where_the_prior_draws_next(served: Served) -> None:
    z = served.post("sample", seed=1)["z"]
    found = served.post("next", z=z, n=3)
    assert len(found["places"]) == len(served.everywhere)
    assert sum(found["places"]) + found["stop"] == pytest.approx(1)
    assert found["place"] == int(np.argmax(found["places"]))
    chances = [part["probability"] for part in found["parts"]]
    assert len(chances) == 3
    assert 1 + 1e-6 >= sum(chances) >= chances[0] >= chances[1] >= chances[2] > 0
    assert served.post("next", z=z, place=4, n=32)["place"] == 4


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
    assert engine.test_images is not None
    assert len(engine.valid_images) == 80  # of the validation split
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
    page = np.full((10 * rows, 10 * columns, channels), 255, np.uint8)  # dark strokes on a large page
    page[100:180, 60:220] = 0
    strokes = pixels(served.post("parse", image=text_of(file_of(page)), invert="yes")["original"])
    expected = np.zeros(strokes.shape, bool)
    expected[:, 10:18, 6:22] = True
    np.testing.assert_array_equal(strokes > 128, expected)  # its edges are soft


def test_uploads_and_test_images_are_placed(grey: Served) -> None:
    page = np.full((100, 200), 255, np.uint8)
    page[10:30, 30:90] = 0
    placed = grey.upload(png_of(page), "")
    grey.check(placed)
    left, top, right, bottom = placed["placement"]["cropped"]
    assert ((left + right) // 2, (top + bottom) // 2) == (60, 20)
    assert placed["placement"]["inverted"]
    plain = {"inverted": False, "cropped": [50, 0, 150, 100], "scaled": 0.28}
    assert grey.upload(png_of(page))["placement"] == plain
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
    with Image.open(io.BytesIO(answer.content)) as strip:
        page = rgb(strip)
    tile = enlarged(torch.from_numpy(pixels(served.post("decode", z=z)["canvas"]) / 255), 4)
    found(page[:, -tile.shape[1] - 12 :], tile)
    empty = {**z, "whether": [False] * len(z["whether"])}
    assert served.client.post("/v1/strip.png", json={"z": empty}).status_code == 200


def test_figures_for_papers_hold_the_pixels(served: Served) -> None:
    drawing = served.post("sample", seed=1)
    framed, plain = (served.file("drawing.pdf", z=drawing["z"], outlines=lines) for lines in (True, False))
    assert framed.startswith(b"%PDF-1.")
    assert len(framed) > len(plain)
    with matplotlib.rc_context({"pdf.compression": 0}):
        plain = served.file("drawing.pdf", z=drawing["z"], outlines=False)
    for name in ("canvas", "image"):
        grey_or_rgb = pixels(drawing[name])
        shown = np.broadcast_to(grey_or_rgb, (3, *grey_or_rgb.shape[1:])).transpose(1, 2, 0)
        assert shown.tobytes() in plain or shown[::-1].tobytes() in plain, name


def test_a_model_whose_canvas_is_white() -> None:
    model = tiny_model(tiny_spec("raster", image_shape=(1, 6, 6), steps=4, background="white"))
    engine = Engine(model)
    assert engine.describe().background == "white"
    z = Latents(whether=[True, False, True, False], where=[1, 0, 0, 0], what=[1, 0, 0, 0])
    frames = engine.frames(z).frames
    assert len(frames) == 3
    assert (pixels(frames[0].canvas) == 255).all()
    np.testing.assert_array_equal(pixels(frames[-1].canvas), as_bytes(engine.drawing(z).canvas[0]))
    assert (engine.place_upload(png_of(np.zeros((6, 6, 4), np.uint8)), "no", crop=False)[0] == 255).all()


def test_u_stays_where_an_upload_is_drawn_on_and_is_in_its_files(colour: Served) -> None:
    drawing = colour.upload(png_of(picture(colour)))
    z, parsed = drawing["z"], {"image": drawing["canvas"], "invert": "no"}
    assert colour.post("parse", **parsed)["z"]["u"] is None
    on = colour.post("parse", **parsed, z=z)
    assert on["image"] == drawing["image"] or on["canvas"] != drawing["canvas"]
    assert on["z"]["u"] is not None
    files = [colour.file("steps.gif", z=one) for one in (z, z, {**z, "u": None})]
    assert files[0] == files[1] != files[2]
    whole = len(base64.b64decode(z["u"])) // 4
    for u in ("no base64!", "AAAA", "", text_of(np.full(whole, np.nan, "<f4").tobytes())):
        assert colour.post("decode", 422, z={**z, "u": u})["detail"].startswith("u ")
