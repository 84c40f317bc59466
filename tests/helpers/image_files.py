"""A small folder of images, whose files can be changed without a change of size, and tar files."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 8


def picture(path: Path, value: int) -> None:
    """An image file whose size does not depend on `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "BMP")


def images(folder: Path, count: int = 4) -> Path:
    """Writes class/0.bmp and so on; returns `folder`."""
    for number in range(count):
        picture(folder / "class" / f"{number}.bmp", number)
    return folder


def touch(path: Path) -> None:
    """Gives the file a later time and leaves its content."""
    at = path.stat().st_mtime + 100
    os.utime(path, (at, at))


def change_one(folder: Path) -> None:
    """Gives class/3.bmp another content of the same size, and a later time."""
    picture(folder / "class" / "3.bmp", 99)
    touch(folder / "class" / "3.bmp")


def put_back(folder: Path) -> None:
    """Undoes `change_one`, except for the time."""
    picture(folder / "class" / "3.bmp", 3)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """members: (name, content) in the order of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
