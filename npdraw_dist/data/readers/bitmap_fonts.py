"""Fonts whose glyphs are colour bitmaps (tables CBDT or sbix): the pictures, and what each one stands for."""

import io
from dataclasses import dataclass
from typing import Any

from fontTools.ttLib import TTFont, TTLibError

MOST_NESTED = 8  # ligatures of ligatures; a font with more would be a loop


class NoBitmapFont(Exception):
    """The reason why a file cannot be used."""


@dataclass(frozen=True)
class Bitmap:
    """A picture of a font. png: the encoded image. code_points: of the text that it stands for, in the
    order in which the font has them; empty if no text leads to it."""

    glyph: str
    png: bytes
    code_points: tuple[int, ...]


def read_bitmaps(content: bytes) -> list[Bitmap]:
    """The pictures of a font file at its largest size, in the order of its glyphs. Raises NoBitmapFont."""
    try:
        with TTFont(io.BytesIO(content), lazy=True, fontNumber=0) as font:
            pictures = _pictures(font)
            texts = _Texts(font)
            return [Bitmap(glyph, png, texts.of(glyph)) for glyph, png in pictures.items()]
    except NoBitmapFont:
        raise
    except TTLibError as error:
        raise NoBitmapFont(f"it is no font: {error}") from None
    except Exception as error:  # a damaged table raises errors of any type
        raise NoBitmapFont(f"it is a damaged font: {error}") from None


def _pictures(font: TTFont) -> dict[str, bytes]:
    """Glyph -> PNG, of the largest size that the font has."""
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


class _Texts:
    """Code points by glyph: those of the character map, and of ligatures, whose parts may be ligatures."""

    def __init__(self, font: TTFont) -> None:
        self._known: dict[str, tuple[int, ...]] = {}
        for code_point, glyph in sorted((font.getBestCmap() or {}).items()):
            self._known.setdefault(glyph, (code_point,))
        self._ligatures: dict[str, list[list[str]]] = {}
        for table in _ligature_tables(font):
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    self._ligatures.setdefault(ligature.LigGlyph, []).append([first, *ligature.Component])

    def of(self, glyph: str, nested: int = 0) -> tuple[int, ...]:
        """The text of a glyph; the first ligature that leads to it counts."""
        if glyph not in self._known and nested < MOST_NESTED:
            for parts in self._ligatures.get(glyph, []):
                found = [self.of(part, nested + 1) for part in parts]
                if all(found):
                    self._known[glyph] = tuple(code_point for text in found for code_point in text)
                    break
        return self._known.get(glyph, ())


def _ligature_tables(font: TTFont) -> list[Any]:
    if "GSUB" not in font or font["GSUB"].table.LookupList is None:
        return []
    tables = [table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable]
    inner = [getattr(table, "ExtSubTable", table) for table in tables]
    return [table for table in inner if hasattr(table, "ligatures")]
