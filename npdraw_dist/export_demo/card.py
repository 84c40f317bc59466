"""Name and licence of a model folder."""

import re
from pathlib import Path

from pyarrow import fs

from npdraw_dist.core.storage import open_filesystem, read_bytes

LICENSE = "apache-2.0"  # of the cards of this package (`nn.card`)


def name_of(where: str) -> str:
    """The last name in the path, URI or hub id; of a run's folder `model` that of the run."""
    path = str(Path(where).resolve()) if "://" not in where and Path(where).exists() else where
    names = [name for name in path.split("/") if name not in ("", "model")]
    return names[-1] if names else "NP-DRAW"


def license_of(folder: str) -> str:
    """What the model's card, README.md, states; without a card that of the package."""
    filesystem, path = open_filesystem(f"{folder.rstrip('/')}/README.md")
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return LICENSE
    header = read_bytes(filesystem, path).decode("utf-8", "replace").split("\n---")[0]
    found = re.search(r"^license:\s*([^\s#]+)", header, re.M)
    return found[1].strip("\"'") if found else LICENSE
