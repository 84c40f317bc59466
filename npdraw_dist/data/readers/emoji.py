"""Reads the pictures of a colour bitmap font.

Noto Color Emoji (OFL 1.1) has 4,082 pictures of 136 x 128 pixels.
Each picture is drawn on `data.background` in a square and resized. Its class is the Unicode group.
Shapes: N pictures, C channels, S image side.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fontTools.ttLib import TTFont
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import Frame, read_picture
from npdraw_dist.data.listing import list_paths, stamp_of
from npdraw_dist.data.readers import emoji_names as names
from npdraw_dist.data.readers.known import kept
from npdraw_dist.data.rows import RowBuilder, Rows
from npdraw_dist.data.shards import Source, listed
from npdraw_dist.data.splits import SPLITS, Split, grouped
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, read_bytes

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
MOST_NESTED = 8  # largest depth of ligatures that consist of ligatures; a greater one means a loop


class NoBitmapFont(Exception):
    """A file cannot be used as a font with colour bitmaps. The message is the reason."""


class Bitmap(NamedTuple):
    """A picture of a font. code_points: the text that the picture shows, in the font's order; () if none."""

    glyph: str
    png: bytes
    code_points: tuple[int, ...]


def open_emoji(data: DataConfig, seed: int) -> Source:
    """Opens a font. All variants of an emoji, and all pictures equal to one of them, are in one split.

    Each split has about its share of each Unicode group.
    `data.split_by variant` splits variants independently, to hold out new combinations of known elements.
    """
    place = data.path
    if place is None:
        place = next((place for place in PLACES if Path(place).is_file()), None)
    if place is None:
        raise UserError(f"data.source emoji needs a font; {ADVICE}")
    filesystem, path = open_filesystem(place)
    try:
        bitmaps = _bitmaps(read_bytes(filesystem, path))
    except (OSError, NoBitmapFont) as error:
        raise UserError(f"data.path {place}: {error}; {ADVICE}") from None
    groups = [names.group(bitmap.code_points) for bitmap in bitmaps]
    classes = sorted({name for name in groups if name is not None})
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    labels = [number.get(name, -1) for name in groups]
    # Pictures that share a key, directly or through others, are in one split.
    key = names.canonical if data.split_by == "variant" else names.variant_key
    keys = [[b.png, key(b.code_points)] if b.code_points else [b.png] for b in bitmaps]
    shares = data.test_fraction, data.valid_fraction
    splits: dict[Split, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    split_of = grouped(keys, np.array(labels), shares, seed)
    for bitmap, label, split in zip(bitmaps, labels, split_of, strict=True):
        splits[split].append((bitmap.glyph, label))
    read = partial(_read_pictures, filesystem, path, Frame(data.shape, data.background))
    folder, _, file = path.rpartition("/")
    return listed(data, seed, read, splits, stamp_of(list_paths(filesystem, folder, [file])), classes)


def _read_pictures(
    filesystem: fs.FileSystem, path: str, frame: Frame, items: Sequence[tuple[str, int]]
) -> Rows:
    """Returns the rows of `items`, which are (glyph, label) pairs.

    The id is the code points of the text, such as `1F600`, or the name of the glyph. If several glyphs show
    the same text, the id consists of both.
    """
    content = read_bytes(filesystem, path)
    try:
        bitmaps = {bitmap.glyph: bitmap for bitmap in _bitmaps(content)}
    except NoBitmapFont as error:
        raise UserError(f"{path}: {error}") from None
    texts = {g: names.write_text(names.canonical(b.code_points)) for g, b in bitmaps.items() if b.code_points}
    owners = Counter(texts.values())
    builder = RowBuilder(frame.shape)
    for glyph, label in items:
        text = texts.get(glyph, "")
        name = "/".join(filter(None, (text, glyph if owners[text] != 1 else "")))
        words = names.words(bitmaps[glyph].code_points)
        builder.add(name, label, partial(read_picture, bitmaps[glyph].png, frame), words)
    return builder.rows()


@kept(maxsize=1)  # all shards read the same font
def _bitmaps(content: bytes) -> list[Bitmap]:
    """The pictures of a font at its largest size, in the order of its glyphs. May raise NoBitmapFont."""
    try:
        with TTFont(io.BytesIO(content), lazy=True, fontNumber=0) as font:
            pictures, text_of = _pictures(font), _texts(font)
            return [Bitmap(glyph, png, text_of(glyph)) for glyph, png in pictures.items()]
    except NoBitmapFont:
        raise
    except Exception as error:  # a damaged table raises errors of any type
        raise NoBitmapFont(f"it is not a font, or it is damaged: {error}") from None


def _pictures(font: TTFont) -> dict[str, bytes]:
    """Glyph -> PNG at the font's largest size, from the table CBDT, or sbix in Apple's fonts."""
    if "CBDT" in font:
        sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
        strike = font["CBDT"].strikeData[sizes.index(max(sizes))]
        found = {name: getattr(strike[name], "imageData", b"") for name in strike}
    elif "sbix" in font:
        strikes = font["sbix"].strikes
        glyphs = strikes[max(strikes)].glyphs
        found = {name: glyphs[name].imageData for name in glyphs if glyphs[name].graphicType == "png "}
    else:
        raise NoBitmapFont("it has no colour bitmaps (tables CBDT or sbix)")
    pictures = {name: bytes(png) for name, png in found.items() if png}
    if not pictures:
        raise NoBitmapFont("its tables of colour bitmaps are empty")
    return pictures


def _texts(font: TTFont) -> Callable[[str], tuple[int, ...]]:
    """Returns a function that finds a glyph's code points in the character map or through ligatures."""
    known: dict[str, tuple[int, ...]] = {}
    for code_point, glyph in sorted((font.getBestCmap() or {}).items()):
        known.setdefault(glyph, (code_point,))
    every: dict[str, list[list[str]]] = {}
    for glyph, parts in _ligatures(font):
        every.setdefault(glyph, []).append(parts)

    def of(glyph: str, nested: int = 0) -> tuple[int, ...]:
        if glyph not in known and nested < MOST_NESTED:
            for parts in every.get(glyph, []):
                found = [of(part, nested + 1) for part in parts]
                if all(found):
                    known[glyph] = tuple(code_point for text in found for code_point in text)
                    break
        return known.get(glyph, ())

    return of


def _ligatures(font: TTFont) -> Iterator[tuple[str, list[str]]]:
    """Yields each ligature's glyph and the glyphs that it stands for, which may be ligatures too."""
    if "GSUB" not in font or font["GSUB"].table.LookupList is None:
        return
    for table in (table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable):
        for first, ligatures in getattr(getattr(table, "ExtSubTable", table), "ligatures", {}).items():
            for ligature in ligatures:
                yield ligature.LigGlyph, [first, *ligature.Component]
