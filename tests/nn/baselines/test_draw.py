"""DRAW without attention, and what its steps depend on."""

import itertools
from pathlib import Path

import torch

from npdraw_dist.config.load import resolve
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.baselines.draw import DRAW
from tests.helpers.tiny_baselines import strokes, tiny_baseline


def test_without_attention_it_sees_and_writes_everything() -> None:
    model = tiny_baseline("draw", attention=False)
    assert isinstance(model, DRAW)
    assert model.encoder.input_size == 2 * 36 + 16
    assert model.patch.out_features == 36
    assert model.log_weights(strokes(2).float() / 255, 3, torch.Generator().manual_seed(0)).shape == (3, 2)


def test_the_canvas_is_the_sum_of_what_the_steps_write() -> None:
    """Step by step on the same noise; the first reads no more than the image and an empty canvas."""
    model = tiny_baseline("draw")
    assert isinstance(model, DRAW)
    x = strokes(2).float() / 255
    with torch.no_grad():
        steps = list(model.steps(x, torch.Generator().manual_seed(0)))
        canvas, decoder = model._start(2)
        for step in steps:
            decoder = model.decoder(step.z, decoder)
            canvas = canvas + model._write(decoder[0])
            torch.testing.assert_close(step.canvas, canvas)
    assert len(steps) == 3


def test_the_flags_of_the_paper_give_its_network() -> None:
    """Binarised MNIST in Gregor et al. 2015, table 3: T 64, 256 hidden units, z 100, read 2x2, write 5x5."""
    text = (Path(__file__).parents[3] / "docs" / "kinds.md").read_text()
    (line,) = (line for line in text.splitlines() if "--baseline.steps 64" in line)
    words = line.split()
    flags = {flag[2:]: value for flag, value in itertools.pairwise(words) if flag.startswith("--baseline.")}
    sizes = {name.removeprefix("baseline."): value for name, value in flags.items()}
    experiment = resolve("mnist", None, {"model": {"kind": "draw"}, "baseline": sizes})
    with torch.device("meta"):
        model = DRAW(BaselineSpec.of(experiment))
    assert model.spec.steps == 64
    assert (model.encoder.input_size, model.encoder.hidden_size) == (2 * 2 * 2 + 256, 256)
    assert (model.decoder.input_size, model.decoder.hidden_size) == (100, 256)
    assert model.posterior.out_features == 200
    assert model.patch.out_features == 25
    assert model.read_window is not None
    assert model.write_window is not None
