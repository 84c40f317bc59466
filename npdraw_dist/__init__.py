"""NP-DRAW, the image model that draws part by part, as a distributed training framework on Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npdraw_dist.core.parts import PartBank, PartSequence
    from npdraw_dist.nn.npdraw import NPDraw
    from npdraw_dist.pipeline.fit import fit

__version__ = "0.2.0"
__all__ = ["NPDraw", "PartBank", "PartSequence", "fit"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `--help` and `--dry-run` need neither torch nor a model.
    if name == "NPDraw":
        from npdraw_dist.nn.npdraw import NPDraw

        return NPDraw
    if name == "fit":
        from npdraw_dist.pipeline.fit import fit

        return fit
    if name in ("PartBank", "PartSequence"):
        from npdraw_dist.core import parts

        return getattr(parts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
