"""The page: what model.js must know of a model, its name and licence, in one file with everything else.

Shapes: B batch, T steps, L places, K parts, C channels, H x W image.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from npdraw_dist import __version__
from npdraw_dist.config.registry import SOURCES
from npdraw_dist.core.storage import is_file, open_filesystem, read_bytes
from npdraw_dist.export_demo.weights import pack, unknown
from npdraw_dist.nn.appearance import LOG_STD, Appearance
from npdraw_dist.nn.likelihoods import (
    MAX_LOG_SCALE,
    MIN_LOG_SCALE,
    Bernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from npdraw_dist.nn.npdraw import NPDraw

LIKELIHOODS = {
    Bernoulli: ("bernoulli", 0.0),
    DiscretizedLogistic: ("logistic", DiscretizedLogistic.START_LOG_SCALE),
    DiscretizedLogisticMixture: ("logistic_mixture", DiscretizedLogisticMixture.START_LOG_SCALE),
}
LICENSE = "apache-2.0"  # as the cards of this package say (`nn.hub`)
EDITED = ("aligned", "raster", "ranked", "path")  # orders whose edits model.js knows
PRIOR_SIZES = ("table", "depth", "width", "attention_heads", "head_width")
PIXELS = 64  # how many of a drawing a browser checks itself by


@dataclass(frozen=True)
class Facts:
    """What the page says of the model. temperature, seed: of the first sample."""

    name: str
    license: str
    temperature: float
    seed: int


def demo_page(model: NPDraw, facts: Facts) -> str:
    """One HTML file that loads nothing. Raises UserError for a model that it could not draw exactly."""
    packed = pack(model)
    files = resources.files("npdraw_dist.export_demo")
    style, code = ((files / name).read_text("utf-8") for name in ("demo.css", "model.js"))
    script = code + (files / "demo.js").read_text("utf-8")
    said = json.dumps({**describe(model), "tensors": packed.tensors, **vars(facts)}, allow_nan=False)
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    fields = {
        "policy": policy,
        "title": escape(facts.name),
        "style": style,
        "model": said.replace("<", "\\u003c"),  # so that no text of the model ends the block
        "weights": base64.b64encode(packed.content).decode(),
        "script": script,
    }
    template = (files / "demo.html").read_text("utf-8")
    return re.sub(r"{{(\w+)}}", lambda mark: fields[mark[1]], template)


def _digest(block: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"


def describe(model: NPDraw) -> dict[str, Any]:
    """The spec of model.js, without the tensors."""
    spec, grid = model.spec, model.grid
    if spec.order not in EDITED:
        raise unknown(f"the order {spec.order} of this model")
    if type(model.likelihood) not in LIKELIHOODS:
        raise unknown(f"the likelihood {spec.likelihood} of this model")
    name, start = LIKELIHOODS[type(model.likelihood)]
    source = None if spec.data is None else spec.data.source
    named = source and (SOURCES[source].shape or SOURCES[source].channels)  # else it is just where files lay
    sizes = ("height", "width", "patch", "stride", "rows", "columns", "top", "left", "background")
    return {
        "image": spec.image_shape,
        "downscale": spec.downscale,
        "grid": {key: getattr(grid, key) for key in (*sizes, "padded_height", "padded_width", "places")},
        "parts": spec.parts,
        "steps": spec.steps,
        "order": spec.order,
        "aligned": spec.aligned,
        "where_given": spec.where_given,
        "prior": {name: getattr(spec.prior, name) for name in PRIOR_SIZES},
        "authors": spec.authors,
        "decoder_depth": spec.decoder_depth,
        "appearance": _appearance(model.appearance),
        "likelihood": {
            "name": name,
            "components": spec.components,
            "start": start,
            "min_log_scale": MIN_LOG_SCALE,
            "max_log_scale": MAX_LOG_SCALE,
        },
        "source": source if named else None,
        "version": __version__,
        "reference": reference(model),
    }


def _appearance(appearance: Appearance | None) -> dict[str, Any] | None:
    """latents: numbers of an image, or of a cell."""
    if appearance is None:
        return None
    kind, sizes = "global" if appearance.standard else "local", ("size", "coarse_size")
    facts = {"kind": kind, "latents": appearance.shape[0], "log_std": LOG_STD}
    return {**facts, **{name: getattr(appearance, name) for name in sizes}}


@torch.no_grad()
def reference(model: NPDraw) -> dict[str, Any]:
    """A drawing with log p(z) and some pixels of its image, by which the page checks what it computes."""
    z = model.sample_prior(1, seed=0)
    pixels = model.decode(model.render(z)).flatten()
    every = max(len(pixels) // PIXELS, 1)
    return {
        **{key: values[0].tolist() for key, values in vars(z).items()},
        "log_prob": round(float(model.prior_log_prob(z)[0]), 3),
        "pixels": [round(value, 4) for value in pixels[::every][: len(pixels) // every].tolist()],
    }


def name_of(where: str) -> str:
    """The last name in the path, URI or hub id; of a run's folder `model` that of the run."""
    path = str(Path(where).resolve()) if "://" not in where and Path(where).exists() else where
    names = [name for name in path.split("/") if name not in ("", "model")]
    return names[-1] if names else "NP-DRAW"


def license_of(folder: str) -> str:
    """What the model's card, README.md, states; without a card that of the package."""
    filesystem, path = open_filesystem(f"{folder.rstrip('/')}/README.md")
    if not is_file(filesystem, path):
        return LICENSE
    header = read_bytes(filesystem, path).decode("utf-8", "replace").split("\n---")[0]
    found = re.search(r"^license:\s*([^\s#]+)", header, re.M)
    return found[1].strip("\"'") if found else LICENSE
