"""What parts cannot say, u, goes with a drawing: Python, `npdraw edit` and the API give the same pixels."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch

from npdraw_dist.edit import __main__ as edit
from npdraw_dist.nn.npdraw import Drawings
from tests.helpers.serving import Json, Served
from tests.helpers.studio_models import WITH_U, as_bytes, pixels, png_of, save_model


@pytest.fixture(scope="module", params=WITH_U)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(save_model(tmp_path_factory.mktemp("model"), WITH_U[request.param]))


def picture(served: Served, seed: int = 0) -> np.ndarray:
    """(H, W, C)."""
    channels, height, width = served.model.spec.image_shape
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def shows(drawing: Json, expected: Drawings) -> bool:
    """The same pixels; and not those of the canvas alone."""
    bytes_of = as_bytes(expected.images[0])
    assert (bytes_of != as_bytes(expected.decode(expected.canvas, None)[0])).any()
    return bool(np.array_equal(pixels(drawing["image"]), bytes_of))


def test_an_uploaded_image_has_the_same_pixels_three_ways(served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(picture(served)))
    drawing = served.upload((tmp_path / "a.png").read_bytes())
    assert shows(drawing, served.model.drawings(torch.tensor(picture(served)).permute(2, 0, 1)[None]))
    again = served.post("decode", z=drawing["z"])
    assert {**again, "original": drawing["original"], "placement": drawing["placement"]} == drawing
    flags = ["--model", str(served.folder), "--a", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    edit.main([*flags, "--remove", "0:0,0:0"])
    edited = pixels((tmp_path / "out" / "edited.png").read_bytes())
    np.testing.assert_array_equal(edited, pixels(drawing["image"]))


def test_edits_of_an_upload_are_those_of_python(served: Served) -> None:
    model, drawings = served.model, [served.upload(png_of(picture(served, seed))) for seed in (0, 1)]
    a, b = (model.drawings(torch.tensor(picture(served, seed)).permute(2, 0, 1)[None]) for seed in (0, 1))
    (z_a, z_b), keep = (drawing["z"] for drawing in drawings), list(range(9))
    assert shows(served.post("compose", a=z_a, b=z_b, places=keep), model.compose(a, b, keep))
    removed = served.post("edit", z=z_a, edit={"kind": "remove", "places": [3]})
    assert shows(removed, model.edit(a, remove=[3]))
    way = served.post("interpolate", a=z_a, b=z_b)["drawings"]
    for drawing, image in zip(way, model.interpolate(a, b), strict=True):
        assert np.abs(pixels(drawing["image"]).astype(int) - as_bytes(image)).max() <= 1
        served.check(drawing)
    for drawing in served.post("complete", z=z_a, keep=keep, n=2)["drawings"]:
        served.check(drawing)
        assert drawing["z"]["u"] is not None
    parsed = {"image": drawings[0]["canvas"], "invert": "no"}
    assert served.post("parse", **parsed)["z"]["u"] is None
    on = served.post("parse", **parsed, z=z_a)
    assert on["image"] == drawings[0]["image"] or on["canvas"] != drawings[0]["canvas"]
    assert on["z"]["u"] is not None


def test_files_of_a_drawing_show_its_u(colour: Served) -> None:
    z = colour.upload(png_of(picture(colour)))["z"]
    for path in ("steps.gif", "strip.png"):
        files = [colour.file(path, z=one) for one in (z, z, {**z, "u": None})]
        assert files[0] == files[1] != files[2], path


@pytest.mark.parametrize(
    "u", ["no base64!", "AAAA", base64.b64encode(np.full(4, np.nan, "<f4").tobytes()).decode(), ""]
)
def test_other_numbers_are_refused(u: str, served: Served) -> None:
    z = served.post("sample", seed=1)["z"]
    assert served.post("decode", 422, z={**z, "u": u})["detail"].startswith("u: ")
