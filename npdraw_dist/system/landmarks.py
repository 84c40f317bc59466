"""Lets a process on another node check, by one file, that it sees a folder of this node."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from npdraw_dist.system.errors import UserError

CLOCK_S = 60.0  # largest difference, in seconds, between the clocks of a file server and its clients


class BlindNode(UserError):
    """A node does not see a folder that it has to read or write."""


@dataclass(frozen=True)
class Landmarks:
    """A file in a folder that other nodes must see too.

    what: the folder's name in messages, such as "the storage". setting: the flag that sets the folder, as
    messages name it. file: path in the folder. size, modified (seconds since 1970): None if nodes may have
    copies of the folder. Otherwise both are compared, since a node's own disk can hold an older run of the
    same name.
    """

    what: str
    setting: str
    folder: str
    file: str
    size: int | None = None
    modified: float | None = None

    @classmethod
    def of(cls, what: str, setting: str, folder: str, file: str) -> "Landmarks | None":
        """The landmark `file` of a local folder; None if there is no such file."""
        try:
            found = os.stat(f"{folder}/{file}")
        except OSError:
            return None
        return cls(what, setting, os.path.normpath(folder), file, found.st_size, found.st_mtime)

    @classmethod
    def of_data(cls, path: str | None) -> "Landmarks | None":
        """Any entry of the data folder `path`, of which nodes may have copies; None if there is no entry."""
        if path is None or not os.path.isdir(path):
            return None
        with os.scandir(path) as entries:
            first = next(entries, None)
        return None if first is None else cls("the data", "--data.path", os.path.abspath(path), first.name)

    def difference(self) -> str | None:
        """How the folder seen by this process differs; "" if the file is missing, None if nothing differs."""
        try:
            found = os.stat(f"{self.folder}/{self.file}")
        except OSError:
            return ""
        if self.size is None or self.modified is None:
            return None
        if found.st_size != self.size or abs(found.st_mtime - self.modified) > CLOCK_S:
            return f"{self.file} is another file there"
        return None

    def refusal(self, nodes: Sequence[str], difference: str) -> BlindNode:
        """The error for the node addresses `nodes`, where the folder differs or cannot be read."""
        where = ", ".join(sorted(nodes))
        other = f"is not the same folder on {where} ({difference})"
        wrong = other if difference else f"cannot be read from {where}"
        return BlindNode(
            f"{self.what} {self.folder} {wrong}; on several nodes give {self.setting} a folder that all of "
            "them share, or a URI such as s3://bucket/folder"
        )


def differences(landmarks: Sequence[Landmarks]) -> list[str | None]:
    """`difference` of each landmark. Other nodes run it as a task, so this module imports no torch."""
    return [landmark.difference() for landmark in landmarks]


@cache  # each process checks each folder only once
def require_seen(landmark: Landmarks, node: str) -> None:
    """Raises BlindNode if this process, on the node with address `node`, does not see the folder.

    Workers call it, since their node may have joined after the check at the start of the run.
    """
    difference = landmark.difference()
    if difference is not None:
        raise landmark.refusal([node], difference)
