"""Draws glyphs of outline fonts as grey images, bright on black, one for each face and character.

A glyph is drawn with antialiasing and an em of S - 2 x MARGIN pixels, and its bounding box is centred. A
glyph that would leave a margin below MARGIN is drawn smaller. Blank glyphs and twins are left out and
counted. A twin is a character that has the glyph of an earlier character of the file, or the image of an
earlier character of the same range and split.
Shapes: S image side.
"""

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import uharfbuzz as hb
from fontTools import unicodedata
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.listing import below_root, list_paths, stamp_of
from npdraw_dist.data.readers.known import kept
from npdraw_dist.data.rows import RowBuilder, Rows
from npdraw_dist.data.shards import Part, Source, of_files
from npdraw_dist.data.splits import HashSplit, Split, grouped
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import display_path, in_threads, list_files, open_filesystem, read_bytes

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
OUTLINES = ("glyf", "CFF ", "CFF2")
SCRIPTS = {code: number for number, code in enumerate(sorted(unicodedata.Scripts.NAMES))}
MARGIN = 2  # px; least distance between a glyph and the edge
LEAST_EM = 4  # px; a glyph is not drawn with a smaller em, even if it does not fit
Version = tuple[int, int | None]  # size and modification time of a file, part of the key of cached results


@dataclass(frozen=True)
class Face:
    """A face of the font file `path` below `root`, a folder or URI. characters: number of its characters."""

    root: str
    path: str
    version: Version
    index: int
    family: str
    characters: int

    @property
    def file(self) -> str:
        return f"{self.root}/{self.path}"


def open_fonts(data: DataConfig, seed: int) -> Source:
    """Opens all faces of the font files below data.path, in ranges of data.rows_a_shard characters.

    `data.split_by face` holds out families, so that the faces of a family, and of a file, are in one split.
    `data.split_by character` holds out the same characters of all faces. A broken file counts as one rejected
    row.
    """
    if data.path is None:
        raise UserError("data.source fonts needs --data.path, a folder of fonts, such as /usr/share/fonts")
    filesystem, root = open_filesystem(data.path)
    names = [path for path, _ in list_files(filesystem, root) if path.lower().endswith(SUFFIXES)]
    if not names:
        raise UserError(f"data.path {data.path} is missing or has no font ({', '.join(SUFFIXES)})")
    shared, paths = below_root(names)
    files = list_paths(filesystem, shared, paths)
    found = in_threads(partial(_faces, display_path(filesystem, shared)), files.to_pylist())
    faces = [face for own, _ in found for face in own]
    broken = {path: why for path, (_, why) in zip(paths, found, strict=True) if why is not None}
    if not faces:
        path, why = next(iter(broken.items()))
        raise UserError(f"no font below data.path {data.path} can be used: {path}: {why}")
    rule = HashSplit.of(data, seed, own=())
    stated: Sequence[Split | None] = [None] * len(faces)
    if data.split_by == "face":
        keys = [[("file", face.path), ("family", face.family)] for face in faces]
        shares = data.test_fraction, data.valid_fraction
        stated = grouped(keys, np.zeros(len(faces), np.int64), shares, seed)
    parts = []
    for face, split in zip(faces, stated, strict=True):
        splits = rule.possible(None) if split is None else (split,)
        for start in range(0, face.characters, data.rows_a_shard):
            stop = min(start + data.rows_a_shard, face.characters)
            read = FaceRange(face, data.shape[1], start, stop, rule, split)
            parts.append(Part(splits, read))
    parts += [Part(("train",), partial(_rejected, data.shape, path, why)) for path, why in broken.items()]
    return of_files(data, seed, parts, {}, stamp_of(files), list(SCRIPTS))


def _rejected(
    shape: tuple[int, int, int], path: str, why: str, wanted: Collection[Split]
) -> dict[Split, Rows]:
    builders = {split: RowBuilder(shape) for split in wanted}
    for builder in builders.values():
        builder.reject(path, why)
    return {split: builder.rows() for split, builder in builders.items()}


def _faces(root: str, file: Mapping[str, Any]) -> tuple[list[Face], str | None]:
    """The faces of a file that have characters, or the reason why the file cannot be used.

    file: a row of `list_paths`. Raises OSError if the storage fails, since the font may be intact.
    """
    path, version = file["path"], (file["size"], file["modified"])
    try:
        content = _content(f"{root}/{path}", version)
    except (FileNotFoundError, PermissionError) as error:
        return [], f"unreadable font: {error}"
    try:
        blob = hb.Blob(content)
        number = hb.Face(blob, 0).count
    except Exception as error:  # damaged tables raise errors of any type
        return [], f"unreadable font: {error}"
    if number == 0:
        return [], "it is no font"
    faces = list[Face]()
    for index in range(number):
        face = hb.Face(blob, index)
        if not set(OUTLINES) & set(face.table_tags):
            return [], f"face {index} has no outlines (tables {', '.join(OUTLINES)})"
        try:
            family = _open(content, index, LEAST_EM).getname()[0] or path
        except (OSError, ValueError) as error:
            return [], f"FreeType cannot open face {index}: {error}"
        if len(face.unicodes):
            faces.append(Face(root, path, version, index, family, len(face.unicodes)))
    return faces, None


def _open(content: bytes, index: int, em: int) -> ImageFont.FreeTypeFont:
    """Opens a face at an em of `em` px. Raises OSError or ValueError if FreeType cannot open it."""
    return ImageFont.truetype(io.BytesIO(content), em, index, layout_engine=ImageFont.Layout.BASIC)


@kept(maxsize=2)  # because a worker reads several ranges of one file
def _content(file: str, version: Version) -> bytes:
    return read_bytes(*open_filesystem(file))


@kept(maxsize=2)
def _characters(file: str, version: Version) -> list[tuple[list[int], set[int]]]:
    """For each face of a file, its code points in order, and those that share the glyph of an earlier one."""
    blob, seen, found = hb.Blob(_content(file, version)), set[tuple[bytes, int]](), []
    for index in range(hb.Face(blob, 0).count):
        face = hb.Face(blob, index)
        font, tables, twins = hb.Font(face), _tables(face), set[int]()
        for code in face.unicodes:
            glyph = tables, font.get_nominal_glyph(code)
            if glyph in seen:
                twins.add(code)
            seen.add(glyph)
        found.append((list(face.unicodes), twins))
    return found


def _tables(face: hb.Face) -> bytes:
    """A digest of the tables of outlines, which several faces of a collection may share."""
    digest = hashlib.blake2b(str(face.upem).encode(), digest_size=16)
    for name in sorted({"loca", *OUTLINES} & set(face.table_tags)):
        digest.update(face.reference_table(name).data)
    return digest.digest()


@dataclass(frozen=True)
class FaceRange:
    """Reads characters [start, stop) of a face, in order of code point, if they are in a requested split.

    The id is `<file>/<face>/U+<code point>`. side: S. split: the split of the whole face; None if `rule`
    decides it for each character.
    """

    face: Face
    side: int
    start: int
    stop: int
    rule: HashSplit
    split: Split | None

    def __call__(self, wanted: Collection[Split]) -> dict[Split, Rows]:
        face = self.face
        codes, twins = _characters(face.file, face.version)[face.index]
        try:
            draw = GlyphPen(_content(face.file, face.version), face.index, self.side)
        except (OSError, ValueError) as error:  # raised by FreeType
            raise UserError(f"{face.path}: {error}") from None
        builders = {split: RowBuilder((1, self.side, self.side)) for split in wanted}
        images = {split: set[bytes]() for split in wanted}
        for code in codes[self.start : self.stop]:
            name = f"{face.path}/{face.index}/U+{code:04X}"
            split = self.split or self.rule.split_of(f"U+{code:04X}")
            if split not in builders or not self.rule.in_fraction(name, split):
                continue
            builder, seen = builders[split], images[split]
            try:
                image = None if code in twins else draw(chr(code))
            except (OSError, ValueError, MemoryError) as error:  # FreeType raises these for a damaged glyph
                builder.reject(name, f"cannot be drawn: {error}")
                continue
            if image is None:
                builder.left_out["twin" if code in twins else "blank"] += 1
            elif (pixels := image.tobytes()) in seen:
                builder.left_out["twin"] += 1
            else:
                seen.add(pixels)
                words = f"{unicodedata.name(chr(code), '')} {face.family}".lower().strip()
                script = SCRIPTS[unicodedata.script(chr(code))]
                builder.add(name, script, partial(np.expand_dims, image, 0), words)
        return {split: builder.rows() for split, builder in builders.items()}


class GlyphPen:
    """Draws the characters of a face. Raises OSError or ValueError if FreeType cannot open the face."""

    def __init__(self, content: bytes, index: int, side: int) -> None:
        self._side, self._most = side, side - 2 * MARGIN
        self._sized = partial(_open, content, index)
        self._fonts = {self._most: self._sized(self._most)}

    def __call__(self, character: str) -> NDArray[np.uint8] | None:
        """Returns the image (S, S) uint8, or None if the glyph has no ink."""
        em = self._most
        glyph = self._ink(character, em)
        while glyph is not None and max(glyph.size) > self._most and em > LEAST_EM:
            em = max(min(em * self._most // max(glyph.size), em - 1), LEAST_EM)
            glyph = self._ink(character, em)
        if glyph is None:
            return None
        image = Image.new("L", (self._side, self._side))
        image.paste(glyph, ((self._side - glyph.width) // 2, (self._side - glyph.height) // 2))
        return np.asarray(image)

    def _ink(self, character: str, em: int) -> Image.Image | None:
        """The drawn glyph, cropped to its ink; None if it has no ink."""
        if em not in self._fonts:
            self._fonts[em] = self._sized(em)
        font = self._fonts[em]
        left, top, right, bottom = font.getbbox(character)
        if right <= left or bottom <= top:
            return None
        # FreeType's box can be a pixel too narrow for the smoothed edge.
        sheet = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
        ImageDraw.Draw(sheet).text((1 - left, 1 - top), character, 255, font)
        box = sheet.getbbox()
        return None if box is None else sheet.crop(box)
