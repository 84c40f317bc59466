"""What parts cannot say, u, goes with a drawing: Python, `npdraw edit` and the API give the same pixels."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist.edit import __main__ as edit
from npdraw_dist.nn.npdraw import Drawings
from tests.helpers.studio_models import WITH_U, as_bytes, pixels, png_of, save_model
from tests.serve.test_api import Json, Served


@pytest.fixture(scope="module", params=WITH_U)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), WITH_U[request.param])


@pytest.fixture
def served(folder: Path) -> Served:
    return Served(folder)


def picture(served: Served, seed: int = 0) -> np.ndarray:
    """(H, W, C)."""
    channels, height, width = served.model.spec.image_shape
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def uploaded(served: Served, seed: int = 0) -> Json:
    files = {"file": ("a.png", png_of(picture(served, seed)))}
    return dict(served.client.post("/v1/encode?invert=no&crop=no", files=files).json())


def shows(drawing: Json, expected: Drawings) -> bool:
    """The same pixels; and not those of the canvas alone."""
    bytes_of = as_bytes(expected.images[0])
    assert (bytes_of != as_bytes(expected.decode(expected.canvas, None)[0])).any()
    return bool(np.array_equal(pixels(drawing["image"]), bytes_of))


def test_an_uploaded_image_has_the_same_pixels_three_ways(
    folder: Path, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png_of(picture(served)))
    expected = served.model.drawings(torch.tensor(picture(served)).permute(2, 0, 1)[None])
    drawing = uploaded(served)
    assert shows(drawing, expected)
    again = served.post("/v1/decode", {"z": drawing["z"]})
    assert {**again, "original": drawing["original"], "placement": drawing["placement"]} == drawing
    flags = ["--model", str(folder), "--a", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    edit.main([*flags, "--remove", "0:0,0:0"])
    edited = pixels((tmp_path / "out" / "edited.png").read_bytes())
    np.testing.assert_array_equal(edited, pixels(drawing["image"]))


def test_edits_of_an_upload_are_those_of_python(served: Served) -> None:
    model, drawings = served.model, [uploaded(served, seed) for seed in (0, 1)]
    a, b = (model.drawings(torch.tensor(picture(served, seed)).permute(2, 0, 1)[None]) for seed in (0, 1))
    (z_a, z_b), keep = (drawing["z"] for drawing in drawings), list(range(9))
    both = {"a": z_a, "b": z_b}
    assert shows(served.post("/v1/compose", {**both, "places": keep}), model.compose(a, b, keep))
    removed = {"z": z_a, "edit": {"kind": "remove", "places": [3]}}
    assert shows(served.post("/v1/edit", removed), model.edit(a, remove=[3]))
    way = served.post("/v1/interpolate", both)["drawings"]
    images = model.interpolate(a, b)
    assert len(way) == len(images)
    for drawing, image in zip(way, images, strict=True):
        assert np.abs(pixels(drawing["image"]).astype(int) - as_bytes(image)).max() <= 1
        served.check(drawing)
    for drawing in served.post("/v1/complete", {"z": z_a, "keep": keep, "n": 2})["drawings"]:
        served.check(drawing)
        assert drawing["z"]["u"] is not None
    parsed = {"image": drawings[0]["canvas"], "invert": "no"}
    assert served.post("/v1/parse", parsed)["z"]["u"] is None
    on = served.post("/v1/parse", {**parsed, "z": z_a})
    assert on["image"] == drawings[0]["image"] or on["canvas"] != drawings[0]["canvas"]
    assert on["z"]["u"] is not None


def test_samples_are_those_of_python(served: Served) -> None:
    model = served.model
    assert shows(served.post("/v1/sample", {"seed": 5}), model.draw(1, seed=5))
    gallery = served.client.get("/v1/gallery", params={"n": 3, "seed": 5}).json()["drawings"]
    for drawing, image in zip(gallery, model.sample(3, seed=5), strict=True):
        np.testing.assert_array_equal(pixels(drawing["image"]), as_bytes(image))


def test_files_and_steps_end_in_the_drawing(served: Served) -> None:
    drawing = uploaded(served)
    z, image = drawing["z"], pixels(drawing["image"])
    last = served.post("/v1/steps", {"z": z})["frames"][-1]
    assert np.abs(pixels(last["image"]).astype(int) - image).max() <= 1
    plain = {**z, "u": None}
    for path in ("steps.gif", "strip.png", "drawing.pdf"):
        files = [served.client.post(f"/v1/{path}", json={"z": one}).content for one in (z, z, plain)]
        assert files[0] == files[1] != files[2]
    svg = served.client.post("/v1/drawing.svg", json={"z": z, "outlines": False}).content
    shown = base64.b64decode(svg.split(b"base64,")[2].split(b'"')[0].replace(b"\n", b""))
    found = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(found, image) or np.array_equal(found[:, ::-1], image)


@pytest.mark.parametrize(
    "u", ["no base64!", "AAAA", base64.b64encode(np.full(4, np.nan, "<f4").tobytes()).decode(), ""]
)
def test_other_numbers_are_refused(u: str, served: Served) -> None:
    z = served.post("/v1/sample", {"seed": 1})["z"]
    says = served.post("/v1/decode", {"z": {**z, "u": u}}, 422)["detail"]
    assert says.startswith("u: ")
