"""The record of who opened a run's test split: <run>/test_split.json.

A choice that was made after the test images were seen is no honest test. So a run states whether they ever
were, when, and by which command.
"""

import json
from datetime import UTC, datetime
from typing import TypedDict

from pyarrow import fs

from npdraw_dist.core.made_by import command_line
from npdraw_dist.core.storage import read_bytes, write_text

RECORD = "test_split.json"


class Opening(TypedDict):
    """One opening of the test split. when: UTC. by: the stage or command that read it."""

    when: str
    by: str
    command: str


def start_record(filesystem: fs.FileSystem, run: str) -> None:
    """Writes the record of a new run, whose test split nobody has opened."""
    _write(filesystem, run, [])


def openings(filesystem: fs.FileSystem, run: str) -> list[Opening] | None:
    """All openings, oldest first; None if the folder has no record."""
    path = f"{run}/{RECORD}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    found: list[Opening] = json.loads(read_bytes(filesystem, path))["opened"]
    return found


def record_opening(filesystem: fs.FileSystem, run: str, by: str) -> None:
    """Adds an opening by this process. To be called before the first test image is read."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = Opening(when=now, by=by, command=command_line())
    _write(filesystem, run, [*(openings(filesystem, run) or []), new])


def _write(filesystem: fs.FileSystem, run: str, opened: list[Opening]) -> None:
    write_text(filesystem, f"{run}/{RECORD}", json.dumps({"opened": opened}, indent=2) + "\n")
