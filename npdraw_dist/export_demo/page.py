"""Makes the demo, one HTML file with model.js and a model's settings, weights, name and licence.

The weights are one sequence of bytes with only the tensors that sampling and decoding need. Tensors that are
always used as one product are multiplied beforehand.
Shapes: L places, K parts, V entries of the vocabulary, W channels of a token, R rank of a table.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from npdraw_dist.baselines.authors.network import CanvasPrior, StridedDecoder
from npdraw_dist.config.registry import SOURCES
from npdraw_dist.nn.appearance import LOG_STD, Appearance, GlobalAppearance, LocalAppearance
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.likelihoods import (
    MAX_LOG_SCALE,
    MIN_LOG_SCALE,
    Bernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import Prior
from npdraw_dist.nn.tables import FactorisedTable, JointTable, PixelTable
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import is_file, open_filesystem, read_bytes
from npdraw_dist.system.version import __version__

LIKELIHOODS = {
    Bernoulli: ("bernoulli", 0.0),
    DiscretizedLogistic: ("logistic", DiscretizedLogistic.START_LOG_SCALE),
    DiscretizedLogisticMixture: ("logistic_mixture", DiscretizedLogisticMixture.START_LOG_SCALE),
}
LICENSE = "apache-2.0"  # licence in the model cards that `nn.hub` writes
EDITED = ("aligned", "raster", "ranked", "path")  # orders whose edits model.js implements
PRIOR_SIZES = ("table", "depth", "width", "attention_heads", "head_width")
PIXELS = 64  # about how many pixels of a drawing the page compares with those that it computes
LARGEST = float(np.finfo(np.float16).max)
_BLOCK = r"blocks\.\d+\.(norm1|norm2|qkv|out|mlp\.[023])"
_RESIDUAL = r"(norm1|norm2|conv1|conv2)"
# Networks that model.js computes -> pattern of the names of their weights. All others are refused.
KNOWN: dict[type[nn.Module], str] = {
    Prior: rf"position|blank|told\.position|(last|norm|whether_head|where_head|what_state|what_head|part|"
    rf"place|chosen_place|drawn\.out|{_BLOCK})\.(weight|bias)",
    CanvasPrior: rf"first|position|(stem\.[024]|(whether|where|what)_head\.[02]|{_BLOCK})\.(weight|bias)",
    Decoder: rf"(inlet|outlet\.[02]|last|blocks\.\d+\.{_RESIDUAL})\.(weight|bias)",
    StridedDecoder: r"layers\.\d+(\.layers\.[0134])?\.(weight|bias)",
    GlobalAppearance: r"(spread|out)\.(weight|bias)",
    LocalAppearance: rf"(of_canvas\.([024]|1\.{_RESIDUAL})|spread|out)\.(weight|bias)",
}
# Weights that are not exported, because they belong to the posterior or are folded into other tensors.
LEFT_OUT = re.compile(
    r"(encoder|of_image|drawn\.(weight|place|code|(look|common|head|head_place).*)|bank_parts|told\.word)\b.*"
)


@dataclass(frozen=True)
class Facts:
    """Facts about the model that the page shows. temperature, seed: settings of the first sample."""

    name: str
    license: str
    temperature: float
    seed: int


def demo_page(model: NPDraw, facts: Facts) -> str:
    """The HTML file, which loads nothing else. Raises UserError if model.js cannot compute the model."""
    packed = pack(model)
    files = resources.files("npdraw_dist.export_demo")
    style, code = ((files / name).read_text("utf-8") for name in ("demo.css", "model.js"))
    script = code + (files / "demo.js").read_text("utf-8")
    facts_json = json.dumps({**describe(model), "tensors": packed.tensors, **vars(facts)}, allow_nan=False)
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    fields = {
        "policy": policy,
        "title": escape(facts.name),
        "style": style,
        "model": facts_json.replace("<", "\\u003c"),  # so that no text in the JSON ends its HTML block
        "weights": base64.b64encode(packed.content).decode(),
        "script": script,
    }
    template = (files / "demo.html").read_text("utf-8")
    return re.sub(r"{{(\w+)}}", lambda mark: fields[mark[1]], template)


def _digest(block: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"


def describe(model: NPDraw) -> dict[str, Any]:
    """The settings that model.js reads, without the tensors."""
    spec, grid = model.spec, model.grid
    if spec.order not in EDITED:
        raise unknown(f"the order {spec.order} of this model")
    if type(model.likelihood) not in LIKELIHOODS:
        raise unknown(f"the likelihood {spec.likelihood} of this model")
    name, start = LIKELIHOODS[type(model.likelihood)]
    source = None if spec.data is None else spec.data.source
    named = source and (SOURCES[source].shape or SOURCES[source].channels)  # a data set, not a file format
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
        "condition": {
            "kind": spec.prior.condition,
            "entries": list(model.vocabulary.entries),
            "guidance": spec.guidance,
        },
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
    """Settings of the appearance u. latents: number of values of u per image (global) or per cell (local)."""
    if appearance is None:
        return None
    kind, sizes = "global" if appearance.standard else "local", ("size", "coarse_size")
    facts = {"kind": kind, "latents": appearance.shape[0], "log_std": LOG_STD}
    return {**facts, **{name: getattr(appearance, name) for name in sizes}}


@torch.no_grad()
def reference(model: NPDraw) -> dict[str, Any]:
    """A drawing, its log p(z) and some pixels of its image, with which the page checks what it computes."""
    z = model.sample_prior(1, seed=0)
    pixels = model.decode(model.render(z)).flatten()
    every = max(len(pixels) // PIXELS, 1)
    return {
        **{key: values[0].tolist() for key, values in vars(z).items()},
        "log_prob": round(float(model.prior_log_prob(z)[0]), 3),
        "pixels": [round(value, 4) for value in pixels[::every][: len(pixels) // every].tolist()],
    }


def license_of(folder: str) -> str:
    """The licence that the model's card, README.md, states; LICENSE if no card states one."""
    filesystem, path = open_filesystem(f"{folder.rstrip('/')}/README.md")
    if not is_file(filesystem, path):
        return LICENSE
    header = read_bytes(filesystem, path).decode("utf-8", "replace").split("\n---")[0]
    found = re.search(r"^license:\s*([^\s#]+)", header, re.M)
    return found[1].strip("\"'") if found else LICENSE


def unknown(what: str) -> UserError:
    return UserError(f"export-demo does not support {what}; use npdraw serve instead")


@dataclass
class Packed:
    """Tensors as bytes for model.js. tensors: name -> shape, type and start in `content`."""

    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def add(self, name: str, tensor: Tensor) -> None:
        """Appends a tensor in float16. Raises UserError if a value is beyond the range of float16."""
        if not tensor.abs().max() <= LARGEST:
            raise UserError(f"export-demo keeps weights in float16, and {name} has values beyond its range")
        self._append(name, "float16", tensor, tensor.detach().cpu().numpy().astype("<f2"))

    def add_pixels(self, name: str, pixels: Tensor) -> None:
        """Appends pixels in [0, 1], as float32 or, if that is exact as for 8-bit images, as bytes."""
        as_bytes = (pixels * 255).round().clamp(0, 255)
        if torch.equal((as_bytes / 255), pixels):
            self._append(name, "bytes", pixels, as_bytes.cpu().numpy().astype("u1"))
        else:
            self._append(name, "float32", pixels, pixels.cpu().numpy().astype("<f4"))

    def _append(self, name: str, kind: str, tensor: Tensor, values: np.ndarray[Any, Any]) -> None:
        self.content += bytes(-len(self.content) % 4)  # a typed array starts at a multiple of its item size
        self.tensors[name] = {"shape": list(tensor.shape), "type": kind, "start": len(self.content)}
        self.content += values.tobytes()


@torch.no_grad()
def pack(model: NPDraw) -> Packed:
    """Packs the tensors of the model. Raises UserError if model.js lacks one of its networks or weights."""
    packed = Packed()
    packed.add_pixels("bank", model.bank_parts)
    for name in ("prior", "decoder", "appearance"):
        network: nn.Module | None = getattr(model, name)
        if network is not None:
            for key, tensor in _layers(network, name):
                packed.add(f"{name}.{key}", tensor)
    return packed


def _layers(network: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    known = KNOWN.get(type(network))
    if known is None:
        raise unknown(f"the {name} of this model ({type(network).__name__})")
    folded = dict(_folded(network))
    for key, tensor in network.state_dict().items():
        if LEFT_OUT.fullmatch(key) or ("table" in folded and re.fullmatch(r"(part|place)\.weight", key)):
            continue
        if not re.fullmatch(known, key):
            raise unknown(f"the layer {name}.{key} of this model")
        yield key, tensor
    yield from folded.items()


def _folded(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and tensors from which a prior's running sum is computed; nothing for other networks.

    They are `table` (L * K, W), or `places` (L, R) and `codes` (K, R). A `PixelTable` adds its weights of
    each part, under the names that trained weights have in other tables. A prior with a condition adds the
    vectors of no word and of the V entries, without position, as `told.entry` (1 + V, W).
    """
    if not isinstance(network, Prior):
        return
    if network.told is not None:
        yield "told.entry", network.told.entries()
    drawn = network.drawn
    if type(drawn) is JointTable:
        assert network.part is not None
        pairs = network.place.weight[:, None] + network.part.weight[None]
        yield "table", drawn.weight + pairs.flatten(0, 1)
    elif isinstance(drawn, FactorisedTable | PixelTable):
        yield "places", drawn.place
        yield "codes", drawn.codes()
        if isinstance(drawn, PixelTable):
            yield "part.weight", drawn.anywhere()
            yield "head_place", drawn.head_place
            yield from zip(("what_head.weight", "what_head.bias"), drawn.head_weights(), strict=True)
    else:
        raise unknown(f"the table of this prior ({type(drawn).__name__})")
