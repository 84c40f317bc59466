"""The source `fonts`, on fonts that the test builds and on those that matplotlib ships."""

import errno
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.readers import fonts as fonts_reader
from npdraw_dist.data.readers.fonts import SCRIPTS
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.system.errors import UserError
from tests.helpers.rows import by_id, read_all

A, B, C, ALPHA, SPACE, SHIN = 0x41, 0x42, 0x43, 0x391, 0x20, 0x5E9
TALL, WIDE, DOT, HUGE = (0, 0, 200, 600), (0, 0, 600, 200), (0, 0, 100, 100), (0, 0, 4000, 1000)
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
EM = 1000
Glyphs = dict[str, list[tuple[int, int, int, int]]]  # name -> boxes: left, bottom, right, top


def make_font(
    glyphs: Glyphs, characters: dict[int, str], family: str = "Test", style: str = "Regular"
) -> TTFont:
    """A TrueType font. A glyph `.notdef`, a box, is added."""
    glyphs = {".notdef": [(0, 0, 500, 700)], **glyphs}
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(characters)
    builder.setupGlyf({name: glyph_of(boxes) for name, boxes in glyphs.items()})
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (EM, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2()
    builder.setupPost()
    font: TTFont = builder.font
    return font


def glyph_of(boxes: list[tuple[int, int, int, int]]) -> object:
    pen = TTGlyphPen(None)
    for left, bottom, right, top in boxes:
        pen.moveTo((left, bottom))
        for point in ((left, top), (right, top), (right, bottom)):
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


def write_collection(path: Path, *fonts: TTFont) -> None:
    """A .ttc whose faces share the tables that are equal."""
    collection = TTCollection()
    collection.fonts = list(fonts)
    collection.save(path, shareTables=True)


def fonts(path: Path, **settings: Any) -> DataConfig:
    shares = {"valid_fraction": 0.0, "test_fraction": 0.0}
    return DataConfig(source="fonts", path=str(path), **{"image_size": 20, **shares, **settings})


def read(data: DataConfig, split: Any = "train") -> list[Rows]:
    return [shard.read() for shard in open_source(data, 0).shards(split)]


def images(data: DataConfig) -> dict[str, np.ndarray]:
    return by_id(read_all(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tall A, which Alpha shows too, a wide B, C with B's outline to the right, a blank, and shin."""
    moved = (130, 0, 730, 200)
    glyphs: Glyphs = {"a": [TALL], "b": [WIDE], "c": [moved], "space": [], "shin": [TALL, WIDE]}
    characters = {A: "a", ALPHA: "a", B: "b", C: "c", SPACE: "space", 0x2603: ".notdef", SHIN: "shin"}
    make_font(glyphs, characters).save(tmp_path / "one.ttf")
    return tmp_path


def test_each_character_is_drawn_once(folder: Path) -> None:
    (rows,) = read(fonts(folder))
    assert rows.ids == ["one.ttf/0/U+0041", "one.ttf/0/U+0042", "one.ttf/0/U+05E9"]
    assert rows.left_out == {"blank": 1, "twin": 2}  # Alpha has the glyph of A, C the same image
    assert rows.rejects == []
    assert rows.labels is not None
    assert rows.labels.tolist() == [SCRIPTS["Latn"], SCRIPTS["Latn"], SCRIPTS["Hebr"]]
    assert rows.images.shape == (3, 1, 20, 20)


@pytest.mark.parametrize("at", ["listing", "reading"])
def test_a_storage_that_fails_makes_no_bad_font(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its characters would be left out for good, though the font is whole."""
    shards = [] if at == "listing" else open_source(fonts(folder), 0).shards("train")
    monkeypatch.setattr(fonts_reader, "_content", Mock(side_effect=OSError(errno.EIO, "timed out")))
    with pytest.raises(OSError, match="timed out"):
        [shard.read() for shard in shards] or open_source(fonts(folder), 0)


def ink(image: np.ndarray) -> tuple[int, int, int, int]:
    """The first row and column with ink, and those after the last."""
    rows, columns = (np.flatnonzero(image[0].any(axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def test_the_box_of_a_glyph_is_centred_and_has_its_size(folder: Path) -> None:
    """An em of 1,000 units is 16 pixels: A is 3.2 x 9.6 pixels, wherever it is in its em."""
    found = images(fonts(folder))
    for name, (height, width) in {"U+0041": (9.6, 3.2), "U+0042": (3.2, 9.6)}.items():
        top, left, bottom, right = ink(found[f"one.ttf/0/{name}"])
        assert abs(bottom - top - height) < 1
        assert abs(right - left - width) < 1
        assert abs(top + bottom - 20) <= 1
        assert abs(left + right - 20) <= 1
        assert found[f"one.ttf/0/{name}"].sum() == pytest.approx(255 * height * width, rel=0.2)


@pytest.mark.parametrize(("margin", "side"), [(0, 20), (5, 28)])
def test_a_large_glyph_is_drawn_smaller(
    margin: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npdraw_dist.data.readers.fonts.MARGIN", margin)
    make_font({"a": [HUGE], "b": [DOT]}, {A: "a", B: "b"}).save(tmp_path / "one.ttf")
    found = images(fonts(tmp_path, image_size=side))
    top, left, bottom, right = ink(found["one.ttf/0/U+0041"])
    room = side - 2 * margin
    assert room - 2 <= right - left <= room
    assert abs((right - left) - 4 * (bottom - top)) <= 4
    assert min(top, left, side - bottom, side - right) >= margin


def test_ranges_hold_what_the_whole_face_holds() -> None:
    """Of a real font. Glyphs of their own with equal images are looked for within a range."""
    data = [
        fonts(DEJAVU / "DejaVuSansMono-Bold.ttf", shard_rows=rows, image_size=12) for rows in (100_000, 700)
    ]
    whole, parts = map(images, data)
    assert len(whole) > 2500
    assert whole.keys() <= parts.keys()
    assert len(parts) < 1.1 * len(whole)
    for key, image in whole.items():
        np.testing.assert_array_equal(parts[key], image)
    sizes = [len(rows) + sum(rows.left_out.values()) for rows in read(data[1])]
    assert set(sizes[:-1]) == {700}
    assert all((image.max() > 0) for image in whole.values())


def test_faces_of_a_collection_share_glyphs(tmp_path: Path) -> None:
    """The second face maps C to a glyph of its own and A to that of the first."""
    glyphs = {"a": [TALL], "b": [WIDE], "c": [TALL, WIDE]}
    faces = [make_font(glyphs, characters) for characters in ({A: "a", B: "b"}, {A: "a", C: "c"})]
    write_collection(tmp_path / "two.ttc", *faces)
    first, second = read(fonts(tmp_path))
    assert first.ids == ["two.ttc/0/U+0041", "two.ttc/0/U+0042"]
    assert second.ids == ["two.ttc/1/U+0043"]
    assert (first.left_out, second.left_out) == ({}, {"twin": 1})
    lighter = make_font({"a": [DOT], "c": [(0, 0, 200, 500)]}, {A: "a", C: "c"})
    write_collection(tmp_path / "two.ttc", faces[0], lighter)
    assert read(fonts(tmp_path))[1].ids == ["two.ttc/1/U+0041", "two.ttc/1/U+0043"]  # other outlines


def test_broken_fonts_are_rejected_by_name(folder: Path) -> None:
    whole = (folder / "one.ttf").read_bytes()
    (folder / "cut.ttf").write_bytes(whole[: len(whole) // 2])
    (folder / "text.otf").write_text("no font")
    (folder / "empty.ttc").write_bytes(b"")
    (folder / "readme.txt").write_text("not looked at")
    (folder / "sub").mkdir()
    (folder / "sub" / "two.TTF").write_bytes(whole)
    found = read(fonts(folder))
    names = [name.partition("/0/")[0] for rows in found for name in rows.ids if "U+0041" in name]
    assert names == ["one.ttf", "sub/two.TTF"]
    assert {reject.id for rows in found for reject in rows.rejects} == {"cut.ttf", "text.otf", "empty.ttc"}


def families(tmp_path: Path, count: int = 10) -> Path:
    """Each of two weights, with five characters of the width of the family's number."""
    for number in range(count):
        for weight, height in (("Regular", 300), ("Bold", 700)):
            foot = (0, 0, 50 * (number + 2), height)
            glyphs = {f"g{i}": [foot, (0, 800, 100 * (i + 1), 900)] for i in range(5)}
            characters = {A + i: f"g{i}" for i in range(5)}
            font = make_font(glyphs, characters, f"Family {number}", weight)
            font.save(tmp_path / f"{number}{weight}.ttf")
    return tmp_path


def names_of(data: DataConfig, seed: int = 0) -> dict[str, list[list[str]]]:
    """Split -> names of the images at their slashes: file, face, character."""
    return {split: [name.split("/") for name in rows.ids] for split, rows in read_all(data, seed).items()}


def test_a_family_is_in_one_split(tmp_path: Path) -> None:
    data = fonts(families(tmp_path), valid_fraction=0.2, test_fraction=0.3)
    found = {split: {name[0] for name in names} for split, names in names_of(data).items()}
    numbers = {split: {name[0] for name in names} for split, names in found.items()}
    assert [len(numbers[split]) for split in SPLITS] == [5, 2, 3]
    assert all(len(found[split]) == 2 * len(numbers[split]) for split in SPLITS)
    assert set().union(*numbers.values()) == set("0123456789")
    other = {split: {name[0][0] for name in names} for split, names in names_of(data, seed=1).items()}
    assert other["test"] == numbers["test"]
    assert other["valid"] != numbers["valid"]
    fifth, half, whole = (set(images(fonts(tmp_path, fraction=share))) for share in (0.2, 0.5, 1.0))
    assert fifth < half < whole
    assert 30 < len(half) < 70 < len(whole) == 100


def test_a_character_is_in_one_split(tmp_path: Path) -> None:
    data = fonts(families(tmp_path, 2), valid_fraction=0.3, test_fraction=0.3, split_by="character")
    facts = open_source(data, 0).facts()
    assert (facts["split_by"], facts["background"]) == ("character", "white")
    found = names_of(data)
    characters = {split: {name[-1] for name in names} for split, names in found.items()}
    assert sum(map(len, characters.values())) == len(set().union(*characters.values())) == 5
    for split in SPLITS:
        assert len(found[split]) == 4 * len(characters[split])  # two families of two weights


def test_what_does_not_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing or has no font"):
        open_source(fonts(tmp_path), 0)
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match=r"can be used: a\.ttf: "):
        open_source(fonts(tmp_path), 0)
    with pytest.raises(UserError, match=r"needs --data\.path"):
        open_source(DataConfig(source="fonts", image_size=28), 0)
    with pytest.raises(ValueError, match=r"data\.image_size is 7"):
        fonts(tmp_path, image_size=7)
    with pytest.raises(ValueError, match="a glyph needs a square"):
        fonts(tmp_path, image_size="20x30")
    with pytest.raises(ValueError, match=r"needs data\.image_size"):
        DataConfig(source="fonts", path=str(tmp_path))
