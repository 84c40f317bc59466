"""Lets a process on another node check, by some files, that it sees a folder of this node."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from npdraw_dist.core.errors import UserError

COUNT = 8  # files to compare
CLOCK_S = 60.0  # how far the clocks of a file server and its clients may differ


class BlindNode(UserError):
    """A node does not see a folder that it has to read or write."""


@dataclass(frozen=True)
class Landmarks:
    """Some files of `folder`, which other nodes must see too.

    what: the folder in words, as "the storage". setting: the flag that names it, for the advice. files: path
    in the folder, bytes, and seconds since 1970, None if they may differ.
    """

    what: str
    setting: str
    folder: str
    files: tuple[tuple[str, int, float | None], ...]

    @classmethod
    def of(
        cls, what: str, setting: str, folder: str, paths: Sequence[str], with_times: bool = False
    ) -> "Landmarks | None":
        """Notes at most COUNT of the files `paths` of a local folder, spread evenly; None if none is there.

        with_times: a file of another time is another one: nodes may have copies of data, not of a run folder.
        """
        files = []
        for path in paths[:: -(-len(paths) // COUNT) or 1]:
            with contextlib.suppress(OSError):
                found = os.stat(f"{folder}/{path}")
                files.append((path, found.st_size, found.st_mtime if with_times else None))
        return cls(what, setting, os.path.normpath(folder), tuple(files)) if files else None

    def difference(self) -> str | None:
        """How the folder that this process sees differs; "" if a file is missing, None if it is the same."""
        for path, size, modified in self.files:
            try:
                found = os.stat(f"{self.folder}/{path}")
            except OSError:
                return ""
            if found.st_size != size or (modified is not None and abs(found.st_mtime - modified) > CLOCK_S):
                return f"{path} is another file there"
        return None

    def refusal(self, nodes: Sequence[str], difference: str) -> BlindNode:
        """The error for nodes, by address, that see another folder."""
        where = ", ".join(sorted(nodes))
        other = f"is not the same folder on {where} ({difference})"
        wrong = other if difference else f"cannot be read from {where}"
        return BlindNode(
            f"{self.what} {self.folder} {wrong}; on several nodes give {self.setting} a folder that all of "
            "them share, or a URI such as s3://bucket/folder"
        )


def differences(folders: Sequence[Landmarks]) -> list[str | None]:
    """`difference` of each folder: a task for another node. It is here since this module imports no torch."""
    return [folder.difference() for folder in folders]


@cache  # a process checks a folder once
def require_seen(folder: Landmarks, node: str) -> None:
    """Raises BlindNode if this process, on the node of address `node`, does not see the folder.

    Workers call it: their node may have joined after all others were asked.
    """
    difference = folder.difference()
    if difference is not None:
        raise folder.refusal([node], difference)
