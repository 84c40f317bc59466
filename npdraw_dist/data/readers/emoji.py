"""The pictures of a colour bitmap font, such as Noto Color Emoji (4,082 of 136 x 128 pixels, SIL OFL 1.1).

Each is drawn on `data.background`, in a square, and resized. The class is its Unicode group.
Shapes: N pictures, C channels, S image side.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pictures import Frame, read_picture
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.readers import emoji_names as names
from npdraw_dist.data.readers.bitmap_fonts import Bitmap, NoBitmapFont, read_bitmaps
from npdraw_dist.data.readers.known import kept
from npdraw_dist.data.rows import RowBuilder, Rows
from npdraw_dist.data.shards import ListedSource
from npdraw_dist.data.splits import Split, groups, stratified

PLACES = (  # where packages of Linux distributions put Noto Color Emoji
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
)
ADVICE = (
    "give --data.path FONT.ttf, a font with colour bitmaps, or install one (Debian and Ubuntu: "
    "apt install fonts-noto-color-emoji)"
)


def open_emoji(data: DataConfig, seed: int) -> ListedSource:
    """The source. Variants of one emoji, and equal pictures, are in one split; groups are spread evenly."""
    filesystem, path = open_filesystem(_font_path(data))
    try:
        bitmaps = _bitmaps(read_bytes(filesystem, path))
    except (OSError, NoBitmapFont) as error:
        raise UserError(f"data.path {data.path or path}: {error}; {ADVICE}") from None
    labels = _labels(bitmaps)
    items = [(bitmap.glyph, label) for bitmap, label in zip(bitmaps, labels, strict=True)]
    family, first = _families(bitmaps)
    # A family is held out or trained on as a whole: its first member stands for it.
    split_of = np.empty(len(first), dtype=object)
    shares = (data.test_fraction, data.valid_fraction)
    parts = stratified(np.asarray(labels)[first], shares, seed)
    order: tuple[Split, ...] = ("test", "valid", "train")
    for split, members in zip(order, parts, strict=True):
        split_of[members] = split
    splits: dict[Split, list[tuple[str, int]]] = {split: [] for split in order}
    for item, number in zip(items, family, strict=True):
        splits[split_of[number]].append(item)
    reader = EmojiReader(filesystem, path, Frame(data.shape, data.background))
    return ListedSource(data, seed, reader, splits, Inputs.of_paths(filesystem, [path]))


def _font_path(data: DataConfig) -> str:
    if data.path is not None:
        return data.path
    found = next((place for place in PLACES if Path(place).is_file()), None)
    if found is None:
        raise UserError(f"data.source emoji needs a font; {ADVICE}")
    return found


@kept(maxsize=1)  # a pure cache: each shard has the same font
def _bitmaps(content: bytes) -> list[Bitmap]:
    return read_bitmaps(content)


def _labels(bitmaps: Sequence[Bitmap]) -> list[int]:
    """The number of each picture's Unicode group in the sorted list of those that occur; -1: none known."""
    groups = [names.group(bitmap.code_points) for bitmap in bitmaps]
    number = {name: i for i, name in enumerate(sorted({name for name in groups if name is not None}))}
    return [-1 if name is None else number[name] for name in groups]


def _families(bitmaps: Sequence[Bitmap]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of each picture's family, (N,), and the first picture of each family.

    A family has the variants of one emoji, and all pictures that equal one of it.
    """
    keys: list[list[Hashable]] = []
    for bitmap in bitmaps:
        text = bitmap.code_points
        keys.append([bitmap.png, names.variant_key(text)] if text else [bitmap.png])
    return groups(keys)


@dataclass(frozen=True)
class EmojiReader:
    """Items are (glyph, label). The id is the text's code points, such as `1F600`, or the glyph's name."""

    filesystem: fs.FileSystem
    path: str
    frame: Frame

    def read(self, items: Sequence[tuple[str, int]]) -> Rows:
        try:
            bitmaps = {b.glyph: b for b in _bitmaps(read_bytes(self.filesystem, self.path))}
        except (OSError, NoBitmapFont) as error:
            raise UserError(f"{self.path}: {error}") from None
        ids = picture_ids(list(bitmaps.values()))
        builder = RowBuilder(self.frame.shape)
        for glyph, label in items:
            builder.add(ids[glyph], label, lambda glyph=glyph: read_picture(bitmaps[glyph].png, self.frame))  # type: ignore[misc]
        return builder.rows()


def picture_ids(bitmaps: Sequence[Bitmap]) -> dict[str, str]:
    """Glyph -> id, each different: two glyphs of one text have their names added."""
    texts = {b.glyph: names.write_text(names.canonical(b.code_points)) for b in bitmaps if b.code_points}
    owners = Counter(texts.values())
    ids: dict[str, str] = {}
    for glyph in (bitmap.glyph for bitmap in bitmaps):
        text = texts.get(glyph, "")
        ids[glyph] = "/".join(filter(None, (text, glyph if owners[text] != 1 else "")))
    return ids
