"""Tiny fonts of colour bitmaps, built with fontTools in the real tables."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import (
    BitmapSizeTable,
    SbitLineMetrics,
    Strike,
    eblc_index_sub_table_1,
)
from fontTools.ttLib.tables.sbixGlyph import Glyph as SbixGlyph
from fontTools.ttLib.tables.sbixStrike import Strike as SbixStrike
from PIL import Image

RGBA = tuple[int, int, int, int]
LINE_METRICS = (
    *("ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator", "caretOffset"),
    *("minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2"),
)


def picture(colour: RGBA, size: tuple[int, int] = (12, 8)) -> bytes:
    """A PNG of `size` (width, height) with a transparent frame of one pixel."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste(colour, (1, 1, size[0] - 1, size[1] - 1))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_font(
    path: Path,
    pictures: Mapping[str, bytes],
    characters: Mapping[int, str],
    ligatures: Mapping[str, Sequence[str]] | None = None,
    table: str = "CBDT",
) -> Path:
    """A font with a PNG for each glyph of `pictures`.

    characters: code point -> glyph. ligatures: glyph -> the glyphs that it stands for. Glyphs without a
    picture exist too.
    """
    parts = [glyph for group in (ligatures or {}).values() for glyph in group]
    glyphs = list(dict.fromkeys([".notdef", *characters.values(), *parts, *pictures]))
    pictures = {glyph: pictures[glyph] for glyph in glyphs if glyph in pictures}  # the tables are sorted
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(dict(characters))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1024, 0)))
    builder.setupHorizontalHeader()
    builder.setupMaxp()
    builder.setupPost()
    if ligatures:
        rules = "\n".join(f"sub {' '.join(group)} by {glyph};" for glyph, group in ligatures.items())
        addOpenTypeFeaturesFromString(builder.font, f"feature ccmp {{ {rules} }} ccmp;")
    _add_cbdt(builder, pictures) if table == "CBDT" else _add_sbix(builder, pictures)
    builder.save(str(path))
    return path


def _add_cbdt(builder: FontBuilder, pictures: Mapping[str, bytes]) -> None:
    """Two sizes: the smaller one has another picture, so that a reader which takes it is found out."""
    data, places = newTable("CBDT"), newTable("CBLC")
    data.version = places.version = 3.0
    wrong = picture((1, 2, 3, 255), (3, 3))
    data.strikeData = [
        {glyph: _cbdt_glyph(png) for glyph, png in pictures.items()},
        {glyph: _cbdt_glyph(wrong) for glyph in pictures},
    ]
    places.strikes = [_strike(list(pictures), size) for size in (109, 20)]
    builder.font["CBDT"], builder.font["CBLC"] = data, places


def _cbdt_glyph(png: bytes) -> cbdt_bitmap_format_17:
    glyph = cbdt_bitmap_format_17(b"", None)
    glyph.metrics = SmallGlyphMetrics()
    glyph.metrics.height = glyph.metrics.width = glyph.metrics.Advance = 12
    glyph.metrics.BearingX = glyph.metrics.BearingY = 0
    glyph.imageData = png
    return glyph


def _strike(glyphs: list[str], size: int) -> Strike:
    strike, index = Strike(), eblc_index_sub_table_1(b"", None)
    index.indexFormat, index.imageFormat, index.imageDataOffset = 1, 17, 0
    index.names = glyphs
    sizes = strike.bitmapSizeTable = BitmapSizeTable()
    sizes.colorRef, sizes.flags, sizes.bitDepth, sizes.ppemX, sizes.ppemY = 0, 1, 32, size, size
    for direction in ("hori", "vert"):
        metrics = SbitLineMetrics()
        for name in LINE_METRICS:
            setattr(metrics, name, 0)
        setattr(sizes, direction, metrics)
    strike.indexSubTables = [index]
    return strike


def _add_sbix(builder: FontBuilder, pictures: Mapping[str, bytes]) -> None:
    table = newTable("sbix")
    table.version, table.flags = 1, 1
    for size, shown in ((160, pictures), (20, dict.fromkeys(pictures, picture((1, 2, 3, 255), (3, 3))))):
        strike = SbixStrike(ppem=size, resolution=72)
        for glyph, png in shown.items():
            strike.glyphs[glyph] = SbixGlyph(glyphName=glyph, graphicType="png ", imageData=png)
        table.strikes[size] = strike
    builder.font["sbix"] = table
