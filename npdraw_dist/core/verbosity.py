"""How much a command prints, `--quiet` or `--verbose`: kept as the level of the logger `npdraw_dist`."""

import logging
from collections.abc import Sequence

# Flag -> its help, and its level.
FLAGS = {
    "--quiet": "print results, warnings and errors only",
    "--verbose": "also print Ray's log, and where an error arose",
}
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}

_logger = logging.getLogger("npdraw_dist")


def set_by(words: Sequence[str]) -> None:
    """Sets what the flag among `words` says, or what is usual."""
    _logger.setLevel(next((LEVELS[word] for word in words if word in LEVELS), logging.INFO))


def is_quiet() -> bool:
    """Whether only results, warnings and errors are printed."""
    return _logger.level > logging.INFO


def is_verbose() -> bool:
    """Whether Ray's log and the places where errors arose are printed too."""
    return _logger.level == logging.DEBUG
