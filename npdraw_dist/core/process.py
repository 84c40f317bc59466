"""What this process has and shows: optional packages, Ray, and how much a command prints."""

import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from npdraw_dist.core.errors import UserError

# Flag -> its help, and its level: that of the logger `npdraw_dist`.
FLAGS = {
    "--quiet": "print results, warnings and errors only",
    "--verbose": "also print Ray's log, and where an error arose",
}
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}

_logger = logging.getLogger("npdraw_dist")


def set_verbosity(words: Sequence[str]) -> None:
    _logger.setLevel(next((LEVELS[word] for word in words if word in LEVELS), logging.INFO))


def is_quiet() -> bool:
    return _logger.level > logging.INFO


def is_verbose() -> bool:
    return _logger.level == logging.DEBUG


def ray_runs() -> bool:
    """Whether Ray runs in this process. What can do without it does not import it, which takes seconds."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


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
