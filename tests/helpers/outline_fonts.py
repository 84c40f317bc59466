"""Small outline fonts: each glyph is some rectangles."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

EM = 1000
Box = tuple[int, int, int, int]  # left, bottom, right, top


def make_font(
    glyphs: Mapping[str, Sequence[Box]],
    characters: Mapping[int, str],
    family: str = "Test",
    style: str = "Regular",
) -> TTFont:
    """A TrueType font. A glyph `.notdef`, a box, is added."""
    order = [".notdef", *glyphs]
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(dict(characters))
    builder.setupGlyf(
        {name: _glyph([(0, 0, 500, 700)] if name == ".notdef" else glyphs[name]) for name in order}
    )
    builder.setupHorizontalMetrics(dict.fromkeys(order, (EM, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2()
    builder.setupPost()
    font: TTFont = builder.font
    return font


def _glyph(boxes: Sequence[Box]) -> object:
    pen = TTGlyphPen(None)
    for left, bottom, right, top in boxes:
        pen.moveTo((left, bottom))
        for point in ((left, top), (right, top), (right, bottom)):
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


def write_font(
    path: Path,
    glyphs: Mapping[str, Sequence[Box]],
    characters: Mapping[int, str],
    family: str = "Test",
    style: str = "Regular",
) -> Path:
    make_font(glyphs, characters, family, style).save(path)
    return path


def write_collection(path: Path, fonts: Sequence[TTFont]) -> Path:
    """A .ttc whose faces share the tables that are equal."""
    collection = TTCollection()
    collection.fonts = list(fonts)
    collection.save(path, shareTables=True)
    return path
