"""`npdraw_dist.fit`: images of any kind in, a model out, without Ray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import npdraw_dist
from npdraw_dist import NPDraw
from npdraw_dist.config.load import resolve
from npdraw_dist.core.errors import UserError
from npdraw_dist.data import rows
from npdraw_dist.pipeline.fit import pictures_of, suited

GREY = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
SMALL: dict[str, Any] = {
    "grid": {"patch": 4, "stride": 4},
    "bank": {"size": 8},
    "prior": {"images": 64, "width": 8, "depth": 1, "attention_heads": 2},
    "vae": {"images": 64, "encoder_width": 8, "decoder_width": 8, "plain_images": 0},
    "train": {"batch_size": 16, "micro_batch": 16, "eval_every_images": 32, "augmented": 0.0},
    "eval": {"images": 4, "k": 2},
}
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
import numpy as np
import npdraw_dist
images = np.load(sys.argv[1])
model = npdraw_dist.fit(images, **eval(sys.argv[2]))
print(type(model).__name__, tuple(model.sample(2).shape))
"""


def strokes(count: int = 60) -> NDArray[np.uint8]:
    """Grey images (N, 12, 12) of a bar of some height on black."""
    images = np.zeros((count, 12, 12), np.uint8)
    for number, image in enumerate(images):
        image[number % 7 : number % 7 + 4, number % 9 : number % 9 + 3] = 255
    return images


class Items(torch.utils.data.Dataset[Any]):
    """A torch Dataset of (image, label)."""

    def __len__(self) -> int:
        return len(GREY)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.from_numpy(GREY[index])[None] / 255, index


class Rows:
    """As a Ray Dataset."""

    def iter_rows(self) -> Any:
        return iter([{"image": image, "label": 0} for image in GREY])


@pytest.mark.parametrize(
    "images",
    [
        GREY,
        GREY[..., None],
        GREY[:, None],
        torch.from_numpy(GREY),
        GREY / 255,
        (GREY / 255).astype(np.float32)[:, None],
        list(GREY),
        [Image.fromarray(image) for image in GREY],
        [(Image.fromarray(image), 3) for image in GREY],
        Items(),
        Rows(),
    ],
)
def test_grey_images_of_any_kind(images: Any) -> None:
    found = pictures_of(images)
    np.testing.assert_array_equal(found.images, GREY[:, None])
    assert found.ids == [f"{number:08d}" for number in range(5)]


@pytest.mark.parametrize("images", [COLOUR, COLOUR.transpose(0, 3, 1, 2), torch.from_numpy(COLOUR) / 255])
def test_colour_images_of_any_kind(images: Any) -> None:
    np.testing.assert_array_equal(pictures_of(images).images, COLOUR.transpose(0, 3, 1, 2))


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    """Of other sizes, some transparent: whole, on white."""
    (tmp_path / "a").mkdir()
    glass = np.zeros((40, 60, 4), np.uint8)
    glass[:, 30:] = (255, 0, 0, 255)
    Image.fromarray(glass).save(tmp_path / "a" / "1.png")
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(tmp_path / "b.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    found = pictures_of(tmp_path)
    assert found.ids == ["a/1.png", "b.PNG"]
    assert found.images.shape == (2, 3, 32, 32)
    assert found.images[0, :, 16, 2].tolist() == found.images[0, :, 2, -2].tolist() == [255, 255, 255]
    assert found.images[0, :, 16, -2].tolist() == [255, 0, 0]
    assert (found.images[1] == 7).all()
    assert pictures_of(str(tmp_path), image_size=16).images.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=r"has no image \(\.png, "):
        pictures_of(tmp_path / "a" / "none")


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([], "there are no images"),
        (GREY.astype(np.int64), "of type int64; give uint8"),
        (GREY.astype(np.float32), r"has floats outside \[0, 1\]"),
        (np.full((2, 8, 8), np.nan), "has NaN or infinite values"),
        (GREY[0], r"not \(8, 8\)"),
        (GREY[None, None], r"not \(1, 1, 5, 8, 8\)"),
        ([np.zeros((8, 8, 2), np.uint8)], r"has the shape \(8, 8, 2\)"),
        (7, "not int"),
    ],
)
def test_what_is_no_image_is_named(images: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        pictures_of(images)


def chosen(images: NDArray[np.uint8]) -> tuple[str, dict[str, Any]]:
    return suited(rows.Rows([str(i) for i in range(len(images))], images))


def test_the_settings_follow_from_the_images() -> None:
    binary = np.zeros((100, 1, 28, 28), np.uint8)
    binary[..., 10:18] = 255
    preset, settings = chosen(binary)
    assert (preset, settings["data"]["binarize"]) == ("digits", "threshold")
    assert settings["vae"] == {"likelihood": "bernoulli"}
    assert settings["grid"] == {"downscale": 1, "background": "black"}
    smoothed = binary.copy()
    smoothed[..., 9] = 128
    assert chosen(smoothed)[1]["data"]["binarize"] == "dynamic"
    shaded = np.full((100, 1, 40, 40), 128, np.uint8)
    preset, settings = chosen(shaded)
    assert (preset, settings["grid"]["downscale"]) == ("emoji64", 2)
    assert settings["vae"]["likelihood"] == "logistic_mixture"
    preset, settings = chosen(np.full((300, 3, 32, 32), 255, np.uint8))
    assert (preset, settings["grid"]["background"]) == ("emoji", "white")
    assert settings["bank"]["size"] == 300 * 64 // 50
    assert chosen(np.zeros((9000, 3, 32, 32), np.uint8))[1]["bank"]["size"] == 1000
    for images in (binary, shaded, np.full((300, 3, 64, 64), 255, np.uint8)):
        preset, settings = chosen(images)
        asked = {**settings, "data": {**settings["data"], "source": "parquet", "path": "x"}}
        assert resolve(preset, None, asked).scale.here
    with pytest.raises(UserError, match="image_size 100: take at most 36, or an even side up to 72"):
        chosen(np.zeros((4, 1, 100, 100), np.uint8))


def test_a_model_is_fitted_without_ray(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", strokes())
    command = [sys.executable, "-c", WITHOUT_RAY, str(tmp_path / "images.npy"), repr(SMALL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NPDraw (2, 1, 12, 12)" in done.stdout
    assert "fit: 60 grey images of 12x12 on black; preset digits, likelihood bernoulli, " in done.stdout
    assert "binarize threshold, 8 parts" in done.stdout
    assert "samples.png" not in done.stdout  # the run is gone
    assert "bank: started\n" in done.stdout  # how many images there are, only reading tells


def published(run: Path) -> None:
    """The model folder of a finished run states its numbers and shows its samples."""
    metrics = json.loads((run / "metrics.json").read_text())
    results = json.loads((run / "model" / "config.json").read_text())["results"]
    for name in ("n", "k", "nll_iwae", "elbo", "bits_per_dim"):
        assert results[name] == metrics[f"valid/{name}"], name
    assert results["split"] == "valid"
    card = (run / "model" / "README.md").read_text()
    assert f"{results['n']} images of the split `valid`, 2 importance samples. Measured at the end" in card
    assert f"| `nll_iwae` | {results['nll_iwae']:,.4f} nats |" in card
    assert (run / "model" / "samples.png").read_bytes() == (run / "samples.png").read_bytes()


def test_a_named_run_is_kept_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where: dict[str, Any] = {"name": "bars", "storage": str(tmp_path)}
    model = npdraw_dist.fit(strokes(), **where, **SMALL)
    assert isinstance(model, NPDraw)
    assert (tmp_path / "bars" / "samples.png").exists()
    published(tmp_path / "bars")
    assert model.results == json.loads((tmp_path / "bars" / "model" / "config.json").read_text())["results"]
    again = npdraw_dist.fit(strokes(), **where, **SMALL)
    assert "all done" in capsys.readouterr().out
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    before = {path: path.read_bytes() for path in (tmp_path / "bars-images").iterdir()}
    with pytest.raises(UserError, match="holds other images than these; take another name"):
        npdraw_dist.fit(strokes()[::-1].copy(), **where, **SMALL)
    assert {path: path.read_bytes() for path in (tmp_path / "bars-images").iterdir()} == before
    with pytest.raises(UserError, match=r"has another config \(vae.images: 64 -> 128\)"):
        npdraw_dist.fit(strokes(), **where, **{**SMALL, "vae": {**SMALL["vae"], "images": 128}})


class Started(Exception):
    pass


@pytest.mark.parametrize(
    ("asked", "workers"),
    [({}, 0), ({"ray": True}, 1), ({"num_workers": "1:2"}, "1:2"), ({"num_workers": 3, "ray": True}, 3)],
)
def test_where_it_trains(asked: dict[str, Any], workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(experiment: Any, *arguments: Any, **options: Any) -> None:
        raise Started(experiment.scale.num_workers)

    monkeypatch.setattr("npdraw_dist.pipeline.fit.start", start)
    with pytest.raises(Started, match=f"^{workers}$"):
        npdraw_dist.fit(strokes(), **SMALL, **asked)


def test_settings_by_section_or_with_a_dot(tmp_path: Path) -> None:
    flat = {f"{section}.{key}": value for section, values in SMALL.items() for key, value in values.items()}
    flat |= {"model.kind": "vae", "baseline.width": 8, "baseline.latents": 4}
    model = npdraw_dist.fit(strokes(30), **flat, seed=3)
    assert type(model).__name__ == "ConvVAE"
    assert model.spec.data is not None
    assert model.spec.data.seed == 3
    with pytest.raises(UserError, match="images_seen is no section of settings"):
        npdraw_dist.fit(strokes(), images_seen=5)
    with pytest.raises(UserError, match=r"unknown key vae\.imges; did you mean"):
        npdraw_dist.fit(strokes(), vae={"imges": 5})
