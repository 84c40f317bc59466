"""Which version or command wrote a manifest, a checkpoint or a report, and whether this one can read it.

`format` counts changes after which an older version would misread a file. What a later version only adds does
not change it. Files of 0.1.0 state neither; their format is 1.
"""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from npdraw_dist import __version__
from npdraw_dist.core.errors import NewerFormat

FORMAT = 1


def stamp() -> dict[str, Any]:
    """What a manifest or a checkpoint states of its writer."""
    return {"version": __version__, "format": FORMAT}


def command_line() -> str:
    """The command of this process as a user can type it again: `npdraw evaluate ...` or `python -m ...`.

    `sys.argv` alone has the path of the module's file, which is of this machine.
    """
    program, words = sys.argv[0], shlex.join(sys.argv[1:])
    if not program.startswith("npdraw "):
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = None if spec is None else spec.name.removesuffix(".__main__")
        program = f"python {shlex.quote(program)}" if module is None else f"python -m {module}"
    return f"{program} {words}".rstrip()


def version_of(values: Mapping[str, Any], where: str) -> str | None:
    """The version that wrote the JSON `values` of the file `where`; None if it does not say.

    Raises NewerFormat if this version cannot read it.
    """
    version, number = values.get("version"), values.get("format", 1)
    if number > FORMAT:
        raise NewerFormat(
            f"{where} was made by npdraw_dist {version} in format {number}; this is {__version__}, of "
            f"format {FORMAT}: install {version} or later, or take another --name"
        )
    return None if version is None else str(version)
