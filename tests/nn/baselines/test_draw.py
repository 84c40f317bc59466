"""DRAW without attention, and what its steps depend on."""

import torch

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
