"""Whole runs of presets in this process: README's first command, faces, the authors' model."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from npdraw_dist import NPDraw, train
from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.baselines.authors.model import AuthorsObjective
from npdraw_dist.config.load import resolve
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.appearance import LocalAppearance
from npdraw_dist.parse.parser import Parse, Parser
from npdraw_dist.pipeline import prior, vae
from npdraw_dist.training.feed import MemoryFeed, Share
from npdraw_dist.training.loop import Budget, Data
from npdraw_dist.training.loop import train as run_loop
from tests.helpers.local_context import LocalContext
from tests.helpers.runs import IN_PROCESS, TINY
from tests.helpers.tiny_models import same
from tests.helpers.tiny_presets import real_images

# Means and standard deviations over seeds 0 to 4, each with its own split, with one thread.
SPREAD = {
    "valid/nll_iwae": (53.4, 0.55),
    "valid/elbo": (-57.6, 0.7),
    "prior/valid_nll": (37.9, 0.7),
    "valid/canvas_mse": (0.0100, 0.0004),
    "parse/canvas_mse": (0.005075, 0.00003),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_command_reaches_its_numbers(tmp_path: Path) -> None:
    train.main(["--storage", str(tmp_path), "--name", "digits", "--eval.split", "valid"])
    found = json.loads((tmp_path / "digits" / "metrics.json").read_text())
    far = {name: found[name] for name, (mean, sd) in SPREAD.items() if abs(found[name] - mean) > 3 * sd}
    assert not far


@pytest.mark.slow
def test_celeba_on_files_in_its_layout(tmp_path: Path) -> None:
    """Crops of photographs stand for faces of 178x218; the model has local Gaussians and half the canvas."""
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
    words = [*TINY, *IN_PROCESS, "--data.fraction", "1", "--bank.size", "60", "--vae.decoder_depth", "1"]
    words += ["--train.batch_size", "16", "--train.micro_batch", "16"]
    where = ["--data.path", str(tmp_path / "faces"), "--storage", str(tmp_path), "--name", "run"]
    train.main(["--preset", "celeba", *where, *words])
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["test/bits_per_dim"] < 12
    assert metrics["test/bits_per_dim"] == pytest.approx(metrics["test/nll_iwae"] / (3 * 64**2 * math.log(2)))
    assert metrics["test/n"] == 10
    parses = json.loads((run / "parses" / "manifest.json").read_text())
    assert parses["splits"] == {"train": 40, "valid": 10, "test": 10}
    for name in ("samples.png", "bank/bank.png", "parses/preview.png", "generation.gif"):
        with Image.open(run / name) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=int)
        assert np.ptp(pixels, axis=2).max() > 60, f"{name} is grey"
    model = NPDraw.from_pretrained(run / "model").eval()
    assert isinstance(model.appearance, LocalAppearance)
    canvas = model.render(model.sample_prior(2, generator=torch.Generator().manual_seed(0)))
    assert canvas.shape == (2, 3, 32, 32)
    assert model.decode(canvas).shape == (2, 3, 64, 64)


def random_batch(n: int) -> Batch:
    images = torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8)
    places = torch.arange(36).expand(n, -1).clone()
    return Batch.of(images, PartSequence(torch.rand(n, 36) < 0.5, places, torch.randint(5, (n, 36))))


def test_a_tiny_form_of_the_authors_model_trains_both_stages_and_samples() -> None:
    torch.manual_seed(0)
    tiny = {
        "bank": {"size": 5},
        "prior": {"depth": 1, "attention_heads": 2, "width": 8},
        "vae": {"encoder_width": 8, "decoder_width": 8, "decoder_depth": 1},
        "train": {"batch_size": 12, "micro_batch": 6},
    }
    experiment = resolve("authors", None, tiny)
    parts = {"bank_parts": torch.rand(5, 1, 5, 5)}
    first = prior.make_objective(experiment, parts)
    weights = {f"prior.{name}": value for name, value in first.prior.state_dict().items()}
    second = vae.make_objective(experiment, {**parts, **weights})
    assert isinstance(second, AuthorsObjective)
    for stage, objective in (("prior", first), ("vae", second)):
        own = experiment.train_of(stage)
        before = {name: value.clone() for name, value in objective.named_parameters()}
        data = Data(MemoryFeed(random_batch(24), Share(own.batch_size, 0)), random_batch(6))
        images = 2 * own.batch_size
        summary = run_loop(objective, data, own, Budget(images, images), 0, LocalContext())
        assert summary["images"] == images
        for name, value in objective.named_parameters():
            frozen = stage == "vae" and (name.startswith("model.prior.") or name == "model.temperature")
            assert value.isfinite().all(), name
            assert torch.equal(value, before[name]) == frozen, name
    model = second.model.eval()
    assert model.log_weights(torch.rand(2, 1, 28, 28).round(), 3).isfinite().all()
    z = model.sample_prior(4, generator=torch.Generator().manual_seed(0))
    assert (z.where[z.whether] != torch.arange(36).expand(4, -1)[z.whether]).any(), "places are drawn"
    assert model.sample(4).shape == (4, 1, 28, 28)


def bank_and_parse(
    preset: str, background: str, images: np.ndarray, order: dict[str, Any]
) -> tuple[PartBank, Parse]:
    """The bank of uint8 images (N, C, H, W), and the parse of the first 64."""
    grid = {"background": background} | order.get("grid", {})
    own = {"bank": {"size": 20}, "grid": grid, "parse": order.get("parse", {})}
    experiment = resolve(preset, None, own)
    small, settings = canvas_bytes(torch.from_numpy(images), experiment.grid.downscale), experiment.bank
    patches = extract(small.numpy(), experiment.canvas_grid, settings.min_energy)
    bank, _ = build_bank(patches, images.shape[1], settings, experiment.seed)
    return bank, Parser.of(experiment, bank)(small[:64])


@pytest.mark.parametrize(
    ("preset", "order"),
    [("cifar10", {}), ("digits", {"grid": {"stride": 4}, "parse": {"order": "path", "steps": 20}})],
)
def test_on_white_bank_and_parses_are_those_of_the_negatives(preset: str, order: dict[str, Any]) -> None:
    images = real_images(resolve(preset, None, {}).data.shape, 160)
    dark, black = bank_and_parse(preset, "black", images, order)
    bright, white = bank_and_parse(preset, "white", 255 - images, order)
    torch.testing.assert_close(bright.parts, 1 - dark.parts, rtol=0, atol=1e-6)
    assert same(white.z, black.z)
    torch.testing.assert_close(white.squared_error, black.squared_error)
    assert white.z.whether.any(1).float().mean() > 0.9
