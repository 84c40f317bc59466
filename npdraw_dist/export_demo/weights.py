"""The weights of an NPDraw as the page reads them: one run of bytes, and where each tensor lies in it.

Only what sampling and decoding need travels, and what the prior adds at a step, where that is smaller.
Shapes: L places, K parts, C channels, P patch side, W channels of a token, R rank.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from npdraw_dist.core.errors import UserError
from npdraw_dist.nn.appearance import GlobalAppearance, LocalAppearance
from npdraw_dist.nn.authors.network import CanvasPrior, StridedDecoder
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import FactorisedTable, JointTable, Prior

LARGEST = float(np.finfo(np.float16).max)
_BLOCK = r"blocks\.\d+\.(norm1|norm2|qkv|out|mlp\.[023])"
_RESIDUAL = r"(norm1|norm2|conv1|conv2)"
# The networks that model.js computes, and the names of their layers there. Another network, or a layer that a
# later version adds, is refused.
KNOWN: dict[type[nn.Module], str] = {
    Prior: rf"position|blank|(last|norm|whether_head|where_head|what_state|what_head|part|place|chosen_place|"
    rf"drawn\.out|{_BLOCK})\.(weight|bias)",
    CanvasPrior: rf"first|position|(stem\.[024]|(whether|where|what)_head\.[02]|{_BLOCK})\.(weight|bias)",
    Decoder: rf"(inlet|outlet\.[02]|last|blocks\.\d+\.{_RESIDUAL})\.(weight|bias)",
    StridedDecoder: r"layers\.\d+(\.layers\.[0134])?\.(weight|bias)",
    GlobalAppearance: r"(spread|out)\.(weight|bias)",
    LocalAppearance: rf"(of_canvas\.([024]|1\.{_RESIDUAL})|spread|out)\.(weight|bias)",
}
# Layers of the posterior, and those that are folded into other tensors.
LEFT_OUT = re.compile(r"(encoder|of_image|drawn\.(weight|place|code|pixels\..*|bank_parts)|bank_parts)\b.*")


def unknown(what: str) -> UserError:
    return UserError(f"export-demo does not know {what}; serve it instead")


@dataclass
class Packed:
    """tensors: name -> shape, type and start in `content`, which model.js reads."""

    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def add(self, name: str, tensor: Tensor) -> None:
        """Appends it in float16. Raises UserError if a value has no such number."""
        if not tensor.abs().max() <= LARGEST:
            raise UserError(f"export-demo keeps weights in float16, and {name} has values beyond its range")
        self._append(name, "float16", tensor, tensor.detach().cpu().numpy().astype("<f2"))

    def add_pixels(self, name: str, pixels: Tensor) -> None:
        """Pixels in [0, 1]: as bytes where that is exact, as patches of 8-bit images are."""
        as_bytes = (pixels * 255).round().clamp(0, 255)
        if torch.equal((as_bytes / 255), pixels):
            self._append(name, "bytes", pixels, as_bytes.cpu().numpy().astype("u1"))
        else:
            self._append(name, "float32", pixels, pixels.cpu().numpy().astype("<f4"))

    def _append(self, name: str, kind: str, tensor: Tensor, values: np.ndarray[Any, Any]) -> None:
        self.content += bytes(-len(self.content) % 4)  # typed arrays start at multiples of their size
        self.tensors[name] = {"shape": list(tensor.shape), "type": kind, "start": len(self.content)}
        self.content += values.tobytes()


@torch.no_grad()
def pack(model: NPDraw) -> Packed:
    """Raises UserError if the model has a network or a layer that the page does not compute."""
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
    """What the prior's running sum adds: `table` (L * K, W); or `places` (L, R) and `codes` (K, R)."""
    if not isinstance(network, Prior):
        return
    drawn = network.drawn
    if type(drawn) is JointTable:
        pairs = network.place.weight[:, None] + network.part.weight[None]
        yield "table", drawn.weight + pairs.flatten(0, 1)
    elif type(drawn) is FactorisedTable:
        yield "places", drawn.place
        yield "codes", drawn.codes()
    else:
        raise unknown(f"the table of this prior ({type(drawn).__name__})")
