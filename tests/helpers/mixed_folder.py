"""A folder with pictures of every mode and size, turned pictures, and files that are no pictures."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SIDE = 16  # side of the images that are made of the pictures
SIZES = {"same": (16, 16), "wide": (30, 12), "large": (400, 1100)}  # width, height
MODES = ("1", "L", "LA", "P", "P-clear", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB")
GREYS = ("1", "L", "LA", "I;16", "I", "F")
TRANSPARENT = ("LA", "RGBA", "P-clear")
TOLERANCE = {"CMYK": 2, "YCbCr": 3, "LAB": 14}  # of 255, by which the conversion of colours may be off
BAD = ("bad/bomb.png", "bad/cut.png", "bad/empty.jpg", "bad/words.png")


def scene(width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture (h, w, 3) of four flat quarters, and where its middle column of a third is transparent."""
    pixels = np.empty((height, width, 3), np.uint8)
    rows, columns = np.arange(height)[:, None] >= height // 2, np.arange(width) >= width // 2
    colours = np.array([[(250, 20, 30), (30, 200, 60)], [(10, 40, 220), (240, 240, 100)]])
    pixels[:] = colours[rows.astype(int), columns.astype(int)]
    clear = np.zeros((height, width), bool)
    clear[:, width // 3 : width // 2] = True
    return pixels, clear


def picture(mode: str, width: int, height: int) -> tuple[Image.Image, NDArray[np.float64]]:
    """A picture of a mode, and by NumPy what it shows on white: (h, w, 3) in 0..255."""
    pixels, clear = scene(width, height)
    grey = pixels[..., 1]
    if mode == "1":
        return Image.fromarray(grey > 100), np.repeat(255.0 * (grey > 100)[..., None], 3, 2)
    if mode in GREYS:
        shown = np.repeat(grey[..., None].astype(float), 3, 2)
        if mode == "LA":
            shown[clear] = 255
            return Image.fromarray(np.dstack([grey, 255 * ~clear]).astype(np.uint8)), shown
        kind: Any = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        scale = {"L": 1, "I;16": 257, "I": 257, "F": 1 / 255}[mode]
        return Image.fromarray((grey * kind(scale)).astype(kind)), shown
    shown, colour = pixels.astype(float), Image.fromarray(pixels)
    if mode in TRANSPARENT:
        shown[clear] = 255
    if mode == "RGBA":
        return Image.fromarray(np.dstack([pixels, 255 * ~clear]).astype(np.uint8)), shown
    if mode.startswith("P"):
        index = np.searchsorted(np.unique(pixels @ [1, 256, 65536]), pixels @ [1, 256, 65536])
        index[clear & (mode == "P-clear")] = 9
        found = Image.fromarray(index.astype(np.uint8), "P")
        palette = np.zeros((256, 3), np.uint8)
        palette[index[~clear]] = pixels[~clear]
        palette[index[clear & (mode == "P")]] = pixels[clear & (mode == "P")]
        found.putpalette(palette.tobytes())
        return found, shown
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        lab = ImageCms.profileToProfile(colour, *profiles, outputMode="LAB")
        assert lab is not None
        return lab, shown
    return colour.convert(mode), shown


def encoded(mode: str, width: int, height: int) -> bytes:
    file = io.BytesIO()
    kind = "TIFF" if mode in ("I", "F", "CMYK", "YCbCr", "LAB") else "PNG"
    options = {"transparency": 9} if mode == "P-clear" else {}
    options["compress_level"] = 1
    picture(mode, width, height)[0].save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, kind: str = "PNG") -> bytes:
    """The scene of 30 x 12 pixels, with an EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(scene(30, 12)[0]).save(file, kind, exif=exif)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def contents() -> dict[str, bytes]:
    """Name below the folder -> content, of pictures that can be read."""
    found = {
        f"{mode.replace(';', '')}/{size}.{'tif' if encoded(mode, 2, 2)[:2] in (b'II', b'MM') else 'png'}": (
            encoded(mode, *SIZES[size])
        )
        for mode in MODES
        for size in SIZES
    }
    return found | {f"turned/{number}.png": turned(number) for number in range(1, 9)}


def bad_contents() -> dict[str, bytes]:
    whole = encoded("RGB", 64, 64)
    return dict(zip(BAD, (bomb(15_000, 15_400), whole[:-40], b"", b"no picture at all"), strict=True))


def write(folder: Path) -> Path:
    for name, content in (contents() | bad_contents()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    return folder
