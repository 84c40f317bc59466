"""`npdraw_dist.fit` of few images with tiny budgets, also for the examples of README, docs and notebooks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import npdraw_dist
from npdraw_dist.config.load import merge
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data.rows import Rows
from npdraw_dist.fitting import fit, fit_images
from npdraw_dist.fitting.fit import suited
from npdraw_dist.fitting.fit_images import pictures_of
from npdraw_dist.pipeline.data import Given
from tests.helpers.in_process import Stopped

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
# In place of the budgets of `fit`.
FITTED: dict[str, Any] = {
    "bank": {"size": 20},
    "prior": {"images": 64, "width": 16, "depth": 1, "attention_heads": 2},
    "vae": {"images": 64, "encoder_width": 8, "decoder_width": 8, "plain_images": 0},
    "train": {"eval_every_images": 64},
    "eval": {"images": 8, "k": 2},
}


def strokes(count: int = 60) -> NDArray[np.uint8]:
    """Grey images (N, 12, 12) of a bar of some height on black."""
    images = np.zeros((count, 12, 12), np.uint8)
    for number, image in enumerate(images):
        image[number % 7 : number % 7 + 4, number % 9 : number % 9 + 3] = 255
    return images


def fit_few(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `fit` train on about `count` of the images, of all parts of the set, for a moment."""

    def few(images: Any, **options: Any) -> Rows:
        found = pictures_of(images, **options)
        return found.take(range(0, len(found), max(len(found) // count, 1)))

    def quickly(pictures: Rows, count: int | None) -> tuple[str, dict[str, Any]]:
        preset, settings = suited(pictures, count)
        return preset, merge(settings, FITTED)

    monkeypatch.setattr(fit_images, "pictures_of", few)
    monkeypatch.setattr(fit, "suited", quickly)


def a_callback_ends(capsys: pytest.CaptureFixture[str], **where: Any) -> None:
    """What a callback raises ends a training, also if it looks like a fault of the storage; the checkpoint of
    that moment is kept. where: arguments of `fit`."""
    long = {**SMALL, "prior": {**SMALL["prior"], "images": 6400}}
    seen: list[float] = []

    def stop(row: Mapping[str, float], stage: str) -> None:
        seen.append(row["images_seen"])
        if "valid/nll" in row:
            raise ConnectionError(stage)

    with pytest.raises(ConnectionError, match="prior"):
        npdraw_dist.fit(strokes(), **long, **where, callbacks=[stop])
    assert max(seen) < 6400
    capsys.readouterr()
    seen.clear()
    with pytest.raises(ConnectionError):
        npdraw_dist.fit(strokes(), **long, **where, callbacks=[stop])
    assert "prior: resumes from checkpoint_" in capsys.readouterr().out


def settings_of(monkeypatch: pytest.MonkeyPatch, *images: Any, **options: Any) -> Experiment:
    """The run that `fit` would start."""
    return started(monkeypatch, *images, **options)[0]


def started(monkeypatch: pytest.MonkeyPatch, *images: Any, **options: Any) -> tuple[Experiment, Given]:
    """The run that `fit` would start, and its images."""
    found: list[tuple[Experiment, Given]] = []

    def start(experiment: Experiment, *_: Any, given: Given, **__: Any) -> None:
        found.append((experiment, given))
        raise Stopped

    monkeypatch.setattr(fit, "start", start)
    with pytest.raises(Stopped):
        npdraw_dist.fit(*images, **options)
    return found[0]


def corners(count: int = 60) -> Any:
    """Images of two bars that cross, which bars of one height do not make."""
    images = strokes(count)
    for number, image in enumerate(images):
        image[number % 9 : number % 9 + 2, number % 5 : number % 5 + 6] = 255
    return images
