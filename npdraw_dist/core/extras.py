"""Optional dependencies: a missing one is one line that names its extra."""

from importlib.util import find_spec

from npdraw_dist.core.errors import UserError


def is_there(module: str) -> bool:
    """Whether `module` can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing; it was imported without a spec, or made None
        return False


def require_extra(what: str, extra: str, *modules: str) -> None:
    """Raises UserError if one of `modules`, which `what` needs and `extra` installs, is not there."""
    if not all(map(is_there, modules)):
        raise UserError(f"{what} needs npdraw_dist[{extra}]: pip install 'npdraw_dist[{extra}]'")
