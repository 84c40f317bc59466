"""The actions of the API, against the model itself. No Ray."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.parse.parser import Parser
from npdraw_dist.serve.engine import open_engine
from tests.helpers.studio_models import GREY, pixels, png_of, save_model
from tests.serve.test_api import Json, Served, blank, grey, served

__all__ = ["grey", "served"]  # fixtures


def text_of(png: bytes) -> str:
    return base64.b64encode(png).decode()


def held(z: Json, places: list[int]) -> set[tuple[int, int]]:
    steps = zip(z["whether"], z["where"], z["what"], strict=True)
    return {(where, what) for whether, where, what in steps if whether and where in places}


def equal(z: Json, other: PartSequence) -> bool:
    other = other.canonical()
    return all(z[name] == getattr(other, name)[0].tolist() for name in ("whether", "where", "what"))


def test_similar_parts_are_neighbours_by_looks(grey: Served) -> None:
    order = grey.client.get("/v1/bank").json()["by_looks"]
    assert sorted(order) == list(range(len(grey.model.bank)))
    parts = grey.model.bank.parts.flatten(1)

    def apart(index: list[int]) -> float:
        return float((parts[index[1:]] - parts[index[:-1]]).square().sum(1).mean())

    random = [apart(torch.randperm(len(parts)).tolist()) for _ in range(200)]
    assert apart(order) < np.mean(random)


def test_a_canvas_drawn_by_hand_is_parsed(served: Served) -> None:
    model, drawing = served.model, served.post("/v1/sample", {"seed": 4})
    parsed = served.post("/v1/parse", {"image": drawing["canvas"], "invert": "no"})
    parser = Parser(model.bank, model.grid, model.spec.steps, model.spec.order)
    canvas = torch.tensor(pixels(drawing["canvas"]))[None]
    assert equal(parsed["z"], parser(canvas).z)
    served.check(parsed)
    np.testing.assert_array_equal(pixels(parsed["original"]), canvas[0].numpy())


def test_dark_strokes_of_any_size_are_parsed(grey: Served) -> None:
    page = np.full((280, 280), 255, np.uint8)
    page[100:180, 60:220] = 0
    parsed = grey.post("/v1/parse", {"image": text_of(png_of(page))})
    small = pixels(parsed["original"])[0]
    expected = np.zeros((28, 28), bool)
    expected[10:18, 6:22] = True
    np.testing.assert_array_equal(small > 128, expected)  # its edges are soft
    inverted = grey.post("/v1/parse", {"image": text_of(png_of(255 - page)), "invert": "auto"})
    assert inverted["z"] == parsed["z"]
    whole = grey.post("/v1/parse", {"image": text_of(png_of(page)), "invert": "no"})
    assert pixels(whole["original"]).mean() > 127


def test_a_picture_of_the_images_size_is_parsed_on_the_canvas(served: Served) -> None:
    channels, height, width = served.model.spec.image_shape
    array = np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image = text_of(png_of(array[..., 0] if channels == 1 else array))
    original = pixels(served.post("/v1/parse", {"image": image, "invert": "no"})["original"])
    scale = served.model.spec.downscale
    means = array.transpose(2, 0, 1).reshape(channels, height // scale, scale, width // scale, scale)
    assert np.abs(original - means.mean((2, 4))).max() <= 0.5


def test_completions_keep_what_is_kept_also_nothing(served: Served) -> None:
    z, keep = served.post("/v1/sample", {"seed": 1})["z"], [0, 1, 2, 7, 8, 13]
    request = {"z": z, "keep": keep, "n": 5, "seed": 9, "temperature": 1.5}
    drawings = served.post("/v1/complete", request)["drawings"]
    assert len(drawings) == 5
    for drawing in drawings:
        assert held(drawing["z"], keep) == held(z, keep)
        served.check(drawing)
    assert len({drawing["canvas"] for drawing in drawings}) > 1
    assert served.post("/v1/complete", request)["drawings"] == drawings
    everything = list(range(served.model.grid.places))
    (same,) = served.post("/v1/complete", {"z": z, "keep": everything, "n": 1})["drawings"]
    assert same["z"] == served.post("/v1/decode", {"z": z})["z"]


def test_where_the_prior_draws_next(served: Served) -> None:
    z = served.post("/v1/sample", {"seed": 1})["z"]
    found = served.post("/v1/next", {"z": z, "n": 3})
    assert len(found["places"]) == served.model.grid.places
    assert sum(found["places"]) + found["stop"] == pytest.approx(1)
    assert found["place"] == int(np.argmax(found["places"]))
    chances = [part["probability"] for part in found["parts"]]
    assert len(chances) == 3
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1 + 1e-6
    assert served.post("/v1/next", {"z": z, "place": 4, "n": 32})["place"] == 4
    assert served.post("/v1/next", {"z": z, "n": 3}) == found


def test_from_a_to_b_place_by_place(served: Served) -> None:
    a, b = (served.post("/v1/sample", {"seed": seed}) for seed in (1, 2))
    drawings = served.post("/v1/interpolate", {"a": a["z"], "b": b["z"]})["drawings"]
    assert (drawings[0]["canvas"], drawings[-1]["canvas"]) == (a["canvas"], b["canvas"])
    assert len(drawings) > 2
    same = served.post("/v1/interpolate", {"a": a["z"], "b": a["z"]})["drawings"]
    assert [drawing["canvas"] for drawing in same] == [a["canvas"]]


def test_a_gallery_is_of_the_prior(served: Served) -> None:
    answer = served.client.get("/v1/gallery", params={"n": 3, "seed": 5, "temperature": 0.7}).json()
    z = served.model.sample_prior(3, torch.Generator().manual_seed(5), 0.7)
    assert all(equal(drawing["z"], z[row : row + 1]) for row, drawing in enumerate(answer["drawings"]))
    for drawing in answer["drawings"]:
        served.check(drawing)


def test_examples_are_scored_by_the_prior(served: Served) -> None:
    examples = served.client.get("/v1/examples").json()["examples"]
    assert len(examples) >= 4
    for example in examples:
        drawing = example["drawing"]
        served.check(drawing)
        expected = drawing["log_prior"] / drawing["parts"]
        assert example["log_prior_per_part"] == pytest.approx(expected, abs=1e-3)
    assert len({example["drawing"]["canvas"] for example in examples}) == len(examples)
    assert served.client.get("/v1/examples").json()["examples"] == examples


def test_the_test_images_are_not_opened_for_examples(tmp_path: Path) -> None:
    engine = open_engine(str(save_model(tmp_path, GREY)))
    assert engine.valid_images is not None
    assert engine.valid_images._parses is not None
    assert len(engine.valid_images) == 80  # of the validation split
    engine.examples()
    assert engine.test_images is not None
    assert not engine.test_images._opened


def test_an_upload_is_placed(grey: Served) -> None:
    page = np.full((100, 200), 255, np.uint8)
    page[10:30, 30:90] = 0
    files = {"file": ("a.png", png_of(page))}
    placed = grey.client.post("/v1/encode", files=files).json()
    grey.check(placed)
    assert placed["placement"]["inverted"]
    left, top, right, bottom = placed["placement"]["cropped"]
    assert right - left == bottom - top >= 60
    assert ((left + right) // 2, (top + bottom) // 2) == (60, 20)
    assert placed["placement"]["scaled"] == pytest.approx(28 / (right - left))
    plain = grey.client.post("/v1/encode?invert=no&crop=no", files=files).json()
    assert plain["placement"] == {"inverted": False, "cropped": [50, 0, 150, 100], "scaled": 0.28}


def test_a_strip_ends_in_the_drawing(served: Served) -> None:
    drawing = served.post("/v1/sample", {"seed": 1})
    answer = served.client.post("/v1/strip.png", json={"z": drawing["z"], "frames": 4})
    assert answer.headers["content-type"] == "image/png"
    assert "attachment" in answer.headers["content-disposition"]
    with Image.open(io.BytesIO(answer.content)) as picture:
        page = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    canvas = pixels(drawing["canvas"])
    side = next(s for s in range(12, 0, -1) if _is_on(page, canvas.repeat(s, 1).repeat(s, 2)))
    assert side >= 1
    empty = {**drawing["z"], "whether": [False] * len(drawing["z"]["whether"])}
    assert served.client.post("/v1/strip.png", json={"z": empty}).status_code == 200


def _is_on(page: np.ndarray, picture: np.ndarray) -> bool:
    """Whether the picture is the last of the upper row of a page, both (C, H, W)."""
    picture = np.broadcast_to(picture, (3, *picture.shape[1:]))
    height, width = picture.shape[1:]
    tops, lefts = range(0, 12), range(page.shape[2] - width - 12, page.shape[2] - width + 1)
    if height > page.shape[1] or width > page.shape[2]:
        return False
    return any(
        np.array_equal(page[:, top : top + height, left : left + width], picture)
        for top in tops
        for left in lefts
        if left >= 0
    )


@pytest.mark.parametrize(("kind", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF-1.")])
def test_a_figure_for_papers_holds_the_pixels(kind: str, begins: bytes, grey: Served) -> None:
    drawing = grey.post("/v1/sample", {"seed": 1})
    bodies = [{"z": drawing["z"], "outlines": outlines} for outlines in (True, False)]
    framed, plain = (grey.client.post(f"/v1/drawing.{kind}", json=body).content for body in bodies)
    assert framed.startswith(begins)
    assert len(framed) > len(plain)
    if kind == "svg":
        first = plain.split(b"base64,")[1].split(b'"')[0].replace(b"\n", b"")
        found = pixels(first.decode())[:1]
        assert _same_up_to_a_flip(found, pixels(drawing["canvas"]))


def _same_up_to_a_flip(found: np.ndarray, expected: np.ndarray) -> bool:
    return any(np.array_equal(array, expected) for array in (found, found[:, ::-1]))


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("complete", {"z": blank(), "keep": [36]}, "place 36: the grid has 6 rows"),
        ("complete", {"z": blank(what=[20] * 36), "keep": []}, "what is 20"),
        ("complete", {"z": blank(), "keep": [], "n": 9}, "n: "),
        ("complete", {"z": blank(), "keep": [], "temperature": 0}, "temperature"),
        ("next", {"z": blank(), "place": 36}, "place 36: the grid has 6 rows"),
        ("next", {"z": blank(), "n": 33}, "n: "),
        ("interpolate", {"a": blank(), "b": blank(whether=[True])}, "of one length"),
        ("parse", {"image": "no base64!"}, "image: not base64"),
        ("parse", {"image": ""}, "empty"),
        ("parse", {"image": text_of(b"no picture")}, "none of PNG"),
        ("parse", {"image": text_of(b"x"), "invert": "maybe"}, "invert"),
        ("strip.png", {"z": blank(), "frames": 1}, "frames"),
        ("drawing.svg", {"z": blank(what=[20] * 36)}, "what is 20"),
        ("drawing.pdf", {"z": blank(what=[20] * 36)}, "what is 20"),
    ],
)
def test_what_is_refused(path: str, body: Json, says: str, grey: Served) -> None:
    assert says in grey.post(f"/v1/{path}", body, 422)["detail"]


@pytest.mark.parametrize("query", ["n=0", "n=33", "seed=-1", "temperature=0", "temperature=nan"])
def test_galleries_that_are_refused(query: str, grey: Served) -> None:
    assert grey.client.get(f"/v1/gallery?{query}").status_code == 422


def test_a_choice_of_placement_that_is_refused(grey: Served) -> None:
    files: Any = {"file": ("a.png", png_of(np.zeros((9, 9), np.uint8)))}
    assert grey.client.post("/v1/encode?crop=yes", files=files).status_code == 422
    assert grey.client.post("/v1/encode?invert=true", files=files).status_code == 422
