"""White does with images what black does with their negatives: the bank and the parses of real data."""

from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.config.load import resolve
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.parse.parser import Parse, Parser
from tests.helpers.preset_models import real_images

SETTINGS: dict[str, Any] = {"bank": {"size": 20}}


def bank_and_parse(preset: str, background: str, images: np.ndarray, order: dict[str, Any]) -> Parse:
    """Of uint8 images (N, C, H, W)."""
    grid = {"background": background} | order.get("grid", {})
    experiment = resolve(preset, None, SETTINGS | {"grid": grid, "parse": order.get("parse", {})})
    small, settings = canvas_bytes(torch.from_numpy(images), experiment.grid.downscale), experiment.bank
    patches = extract(small.numpy(), experiment.canvas_grid, settings.min_energy)
    bank, _ = build_bank(patches, images.shape[1], settings, experiment.seed)
    return Parser.of(experiment, bank)(small[:64])


@pytest.mark.parametrize(
    ("preset", "order"),
    [
        ("digits", {}),
        ("cifar10", {}),
        ("digits", {"grid": {"stride": 4}, "parse": {"order": "path", "steps": 20}}),
    ],
)
def test_bank_and_parses_are_those_of_the_negatives(preset: str, order: dict[str, Any]) -> None:
    images = real_images(resolve(preset, None, {}).data.shape, 160)
    black = bank_and_parse(preset, "black", images, order)
    white = bank_and_parse(preset, "white", 255 - images, order)
    assert black.z.whether.any()
    torch.testing.assert_close(white.bank.parts, 1 - black.bank.parts, rtol=0, atol=1e-6)
    for name in ("whether", "where", "what"):
        assert torch.equal(getattr(white.z, name), getattr(black.z, name)), name
    torch.testing.assert_close(white.canvas, 1 - black.canvas, rtol=0, atol=1e-6)
    torch.testing.assert_close(white.squared_error, black.squared_error)
    shown = (white.canvas < 1).flatten(1).any(1)
    assert shown.float().mean() > 0.9
