"""Records the origin of a file: version, format and command of its writer, and a hash of its inputs."""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from npdraw_dist.system.errors import OtherFormat
from npdraw_dist.system.version import __version__

FORMAT = 2  # increases if an older version would misread the new files


def stamp() -> dict[str, Any]:
    """The package version and file format, which each manifest, checkpoint and model records."""
    return {"version": __version__, "format": FORMAT}


def version_of(values: Mapping[str, Any], where: str) -> str | None:
    """The version that wrote the JSON `values`, or None if they do not name one. where: the file's name.

    Raises OtherFormat if this version cannot read the file.
    """
    version, number = values.get("version"), values.get("format", FORMAT)
    if number != FORMAT:
        raise OtherFormat(
            f"{where} was made by npdraw_dist {version} in format {number}, and {__version__} reads format "
            f"{FORMAT}; use version {version}, or make the file again under another name"
        )
    return None if version is None else str(version)


def fingerprint(facts: Mapping[str, object]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `facts` as sorted JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def command_line() -> str:
    """The command of this process as a user would type it, `npdraw evaluate ...` or `python -m ...`.

    `sys.argv` contains the path of the module instead, which is different on other machines.
    """
    program, words = sys.argv[0], shlex.join(sys.argv[1:])
    if not program.startswith("npdraw "):
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = None if spec is None else spec.name.removesuffix(".__main__")
        program = f"python {shlex.quote(program)}" if module is None else f"python -m {module}"
    return f"{program} {words}".rstrip()
