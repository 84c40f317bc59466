"""Small models with random weights, as the tests of editing and serving need them."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import Prior
from npdraw_dist.pipeline.store import OPENINGS
from tests.helpers.runs import random_parses
from tests.helpers.tiny_models import shaken

# Grey digits at their own places; colour, drawn in ranked order in fewer steps than there are places.
GREY: dict[str, Any] = {"bank": {"size": 20}}
COLOUR: dict[str, Any] = {
    "data": {"source": "celeba", "binarize": "none"},
    "grid": {"patch": 8, "stride": 6, "downscale": 2},
    "parse": {"order": "ranked", "steps": 12},
    "bank": {"size": 9},
    "vae": {"likelihood": "logistic"},
}


# The same with Gaussian latents, of an image or of each 4x4 pixels.
WITH_U: dict[str, dict[str, Any]] = {
    name: {**COLOUR, "vae": {**COLOUR["vae"], "latents": size}}
    for name, size in (("vector", 4), ("map", "map:4"))
}


# A model that is conditioned on a class, by name; another one that also takes any bank of parts.
NAMES = ("cat", "crow", "dog")
ASKED = {**GREY, "prior": {"condition": "class", "vocabulary": NAMES, "table": "joint"}}


TOLD = {
    **GREY,
    "prior": {"condition": "class", "vocabulary": tuple("0123456789"), "table": "pixels"},
}


def save_model(folder: Path, settings: dict[str, Any]) -> Path:
    """folder/model of `settings`, in folder/data 50 black test images for GREY. Its latents u matter."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"encoder_width": 8, "decoder_width": 8, "decoder_depth": 0}
    experiment = Experiment.model_validate(
        {
            **settings,
            "prior": {"width": 8, "depth": 1, "attention_heads": 2, **settings.get("prior", {})},
            "vae": {**small, **settings.get("vae", {})},
        }
    )
    model = NPDraw(ModelSpec.of(experiment))
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    assert isinstance(model.prior, Prior)
    with torch.no_grad():
        if model.prior.what_head is not None:
            model.prior.what_head.weight.mul_(5)  # so that seeds differ
        if model.prior.told is not None:
            shaken(model.prior, 0.5)  # so that classes differ
        if model.appearance is not None:
            for layer in (model.appearance.out, model.appearance.spread):
                assert isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d)
                torch.nn.init.normal_(layer.weight)
    if settings is GREY:
        random_parses(folder).write_json({"opened": []}, OPENINGS)
    model.save_pretrained(folder / "model")
    return folder / "model"


def pixels(png: str | bytes) -> NDArray[np.uint8]:
    """A PNG, in base64 or not, as (C, H, W)."""
    with Image.open(io.BytesIO(base64.b64decode(png) if isinstance(png, str) else png)) as image:
        array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def as_bytes(image: torch.Tensor) -> NDArray[np.uint8]:
    """(C, H, W) in [0, 1] -> what its PNG must hold."""
    return np.round(image.numpy() * 255).astype(np.uint8)


def png_of(array: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """(H, W) or (H, W, C) as a file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()
