"""Colour from end to end: tiles of two photographs through all stages, also in the layout of CelebA."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from npdraw_dist import NPDraw, train
from npdraw_dist.nn.appearance import LocalAppearance

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # in small form: the networks' tests in colour

SIDE = 32
# The columns of a photograph, 640 wide: no pixel lies in two splits.
SPLITS = {"train": (0, 448, 32), "valid": (448, 544, 64), "test": (544, 640, 64)}
SETTINGS = {
    "data.source": "imagefolder",
    "data.image_size": SIDE,
    "data.channels": 3,
    "bank.size": 60,
    "prior.images": 256,
    "prior.depth": 1,
    "prior.width": 16,
    "prior.attention_heads": 2,
    "vae.images": 256,
    "vae.encoder_width": 16,
    "vae.decoder_width": 16,
    "vae.decoder_depth": 1,
    "train.batch_size": 32,
    "train.micro_batch": 32,
    "eval.images": 16,
    "eval.k": 4,
    "scale.num_workers": 1,
}


def tiles(split: str) -> list[NDArray[np.uint8]]:
    """(SIDE, SIDE, 3) each."""
    left, right, step = SPLITS[split]
    return [
        photo[row : row + SIDE, column : column + SIDE]
        for photo in load_sample_images().images
        for row in range(0, photo.shape[0] - SIDE + 1, step)
        for column in range(left, right - SIDE + 1, step)
    ]


@pytest.fixture(scope="module")
def colour_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one finished `train` with the preset cifar10 on the tiles."""
    root = tmp_path_factory.mktemp("colour")
    for split in SPLITS:
        (root / "tiles" / split).mkdir(parents=True)
        for index, tile in enumerate(tiles(split)):
            Image.fromarray(tile).save(root / "tiles" / split / f"{index:03}.png")
    flags = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
    path = ["--data.path", str(root / "tiles"), "--storage", str(root), "--name", "run"]
    train.main(["--preset", "cifar10", *path, *flags])
    return root / "run"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_numbers(colour_run: Path) -> None:
    metrics = read(colour_run / "metrics.json")
    assert all(math.isfinite(value) for key, value in metrics.items() if key != "fingerprint")
    assert 0 < metrics["test/nll_iwae"] <= -metrics["test/elbo"]
    assert metrics["test/bits_per_dim"] == pytest.approx(metrics["test/nll_iwae"] / (3072 * math.log(2)))
    # 256 images are too few to learn from, yet the start is about the canvas and not far from the uniform.
    assert metrics["test/bits_per_dim"] < 12
    for line in (colour_run / "vae" / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line).values())


def test_the_canvas_is_nearer_than_any_constant_image(colour_run: Path) -> None:
    images = np.stack([tile for split in SPLITS for tile in tiles(split)]) / 255
    manifest = read(colour_run / "parses" / "manifest.json")
    assert manifest["images"] == len(images)
    constant = images.var((1, 2)).mean()  # each image's own mean colour
    assert manifest["canvas_mse"] < 0.5 * constant


def test_the_parts_have_the_colours_of_the_photographs(colour_run: Path) -> None:
    """Each part is a real patch: found in the training tiles, channel by channel."""
    bank = (NPDraw.from_pretrained(colour_run / "model").bank.parts * 255).round().byte()
    grid = np.stack(tiles("train")).reshape(-1, 8, 4, 8, 4, 3).transpose(0, 1, 3, 5, 2, 4)
    known = {patch.tobytes() for patch in grid.reshape(-1, 3, 4, 4)}
    assert all(part.numpy().tobytes() in known for part in bank)


def test_pictures(colour_run: Path) -> None:
    for name in ("samples.png", "bank/bank.png", "parses/preview.png", "generation.gif"):
        with Image.open(colour_run / name) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=int)
        assert min(pixels.shape[:2]) >= 100
        assert np.ptp(pixels, axis=2).max() > 60, f"{name} is grey"


def test_samples_are_drawn_in_colour(colour_run: Path) -> None:
    model = NPDraw.from_pretrained(colour_run / "model").eval()
    generator = torch.Generator().manual_seed(0)
    canvas = model.render(model.sample_prior(6, generator))
    assert canvas.shape == model.decode(canvas).shape == (6, 3, SIDE, SIDE)
    drawn = model.draw_pixels(canvas, generator) * 255
    torch.testing.assert_close(drawn, drawn.round(), atol=1e-3, rtol=0)
    assert 0 <= drawn.min() <= drawn.max() <= 255
    images = torch.tensor(np.stack(tiles("test"))).permute(0, 3, 1, 2) / 255
    assert model.log_weights(images[:4], k=2, generator=generator).isfinite().all()


def test_the_preset_celeba_on_files_in_its_layout(local_ray: None, tmp_path: Path) -> None:
    """Crops of the photographs as faces of 178x218, with local Gaussians and a canvas of half the side."""
    folder = tmp_path / "faces" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    lines = []
    for number in range(60):
        photo = load_sample_images().images[number % 2]
        top, left = 7 * (number % 20), 15 * (number % 30)
        name = f"{number + 1:06d}.jpg"
        crop = Image.fromarray(photo[top : top + 218, left : left + 178])
        crop.save(folder / "img_align_celeba" / name, quality=95)
        lines.append(f"{name} {0 if number < 40 else 1 if number < 50 else 2}")
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    own = {"eval.images": 8, "train.batch_size": 16, "train.micro_batch": 16}
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("data.")} | own
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    path = ["--data.path", str(tmp_path / "faces"), "--storage", str(tmp_path), "--name", "run"]
    train.main(["--preset", "celeba", *path, *flags])
    run = tmp_path / "run"
    metrics, model = read(run / "metrics.json"), NPDraw.from_pretrained(run / "model").eval()
    assert 0 < metrics["test/bits_per_dim"] < 12
    assert metrics["test/n"] == 8
    assert read(run / "parses" / "manifest.json")["splits"] == {"train": 40, "valid": 10, "test": 10}
    assert isinstance(model.appearance, LocalAppearance)
    canvas = model.render(model.sample_prior(2, torch.Generator().manual_seed(0)))
    assert canvas.shape == (2, 3, 32, 32)
    assert model.decode(canvas).shape == (2, 3, 64, 64)
