"""NP-DRAW, the image model that draws part by part, as a distributed training framework on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from npdraw_dist.system.version import __version__ as __version__

if TYPE_CHECKING:
    from npdraw_dist.core.images import to_pil
    from npdraw_dist.core.parts import PartBank, PartSequence
    from npdraw_dist.fitting.fit import fit
    from npdraw_dist.nn.drawings import Drawings
    from npdraw_dist.nn.npdraw import NPDraw, load

__all__ = ["Drawings", "NPDraw", "PartBank", "PartSequence", "fit", "load", "to_pil"]

# These names are imported on first use, since `--help` and `--dry-run` need neither torch nor a model.
_MODULES = {
    "Drawings": "nn.drawings",
    "NPDraw": "nn.npdraw",
    "PartBank": "core.parts",
    "PartSequence": "core.parts",
    "fit": "fitting.fit",
    "load": "nn.npdraw",
    "to_pil": "core.images",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"npdraw_dist.{_MODULES[name]}"), name)
