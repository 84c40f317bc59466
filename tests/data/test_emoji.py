"""The source `emoji`, on tiny fonts that the test builds, and on the Debian package where it is there."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.misc import sstruct
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import (
    BitmapSizeTable,
    SbitLineMetrics,
    Strike,
    eblc_index_sub_table_1,
    sbitLineMetricsFormat,
)
from fontTools.ttLib.tables.sbixGlyph import Glyph as SbixGlyph
from fontTools.ttLib.tables.sbixStrike import Strike as SbixStrike
from PIL import Image

from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.readers import emoji, emoji_names
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.system.errors import UserError
from tests.helpers.rows import by_id, concat, read_all

NOTO = Path(emoji.PLACES[0])
RED, BLUE, HALF = (200, 0, 0, 255), (0, 0, 200, 255), (0, 0, 0, 128)
THUMB, DARK, PIZZA, FLAG_D, FLAG_E = 0x1F44D, 0x1F3FF, 0x1F355, 0x1F1E9, 0x1F1EA


def picture(colour: tuple[int, int, int, int], size: tuple[int, int] = (12, 8)) -> bytes:
    """A PNG of `size` (width, height) with a transparent frame of one pixel."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste(colour, (1, 1, size[0] - 1, size[1] - 1))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


WRONG = picture((1, 2, 3, 255), (3, 3))


def write_font(
    path: Path,
    pictures: dict[str, bytes],
    characters: dict[int, str],
    ligatures: Mapping[str, Sequence[str]] = MappingProxyType({}),
    table: str = "CBDT",
) -> Path:
    """A font with a PNG for each glyph of `pictures`. ligatures: glyph -> the glyphs that it stands for."""
    parts = [glyph for group in ligatures.values() for glyph in group]
    glyphs = list(dict.fromkeys([".notdef", *characters.values(), *parts, *pictures]))
    pictures = {glyph: pictures[glyph] for glyph in glyphs if glyph in pictures}  # the tables are sorted
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(characters)
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


def _add_cbdt(builder: FontBuilder, pictures: dict[str, bytes]) -> None:
    """Two sizes: the smaller one has another picture, so that a reader which takes it is found out."""
    data, places = newTable("CBDT"), newTable("CBLC")
    data.version = places.version = 3.0
    sizes = (pictures, dict.fromkeys(pictures, WRONG))
    data.strikeData = [{name: _cbdt_glyph(png) for name, png in shown.items()} for shown in sizes]
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
    sizes.hori = sizes.vert = SbitLineMetrics()
    sstruct.unpack(sbitLineMetricsFormat, bytes(12), sizes.hori)
    strike.indexSubTables = [index]
    return strike


def _add_sbix(builder: FontBuilder, pictures: dict[str, bytes]) -> None:
    table = newTable("sbix")
    table.version, table.flags = 1, 1
    for size, shown in ((160, pictures), (20, dict.fromkeys(pictures, WRONG))):
        strike = SbixStrike(ppem=size, resolution=72)
        for name, png in shown.items():
            strike.glyphs[name] = SbixGlyph(glyphName=name, graphicType="png ", imageData=png)
        table.strikes[size] = strike
    builder.font["sbix"] = table


def emoji_of(path: Path, image_size: int = 12, **settings: Any) -> DataConfig:
    return DataConfig(source="emoji", path=str(path), image_size=image_size, **settings)


def splits_of(data: DataConfig, seed: int) -> dict[str, Split]:
    return {name: split for split, rows in read_all(data, seed).items() for name in rows.ids}


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """A thumb in two skin tones, a pizza, a flag of two letters, and a glyph that no text leads to."""
    return write_font(
        tmp_path / "font.ttf",
        pictures={
            "thumb": picture(RED),
            "thumb.dark": picture(BLUE),
            "pizza": picture(HALF),
            "flag": picture((1, 200, 1, 255)),
            "lost": picture((9, 9, 9, 255)),
        },
        characters={THUMB: "thumb", DARK: "dark", PIZZA: "pizza", FLAG_D: "d", FLAG_E: "e"},
        ligatures={"thumb.dark": ["thumb", "dark"], "flag": ["d", "e"]},
    )


def test_pictures_have_ids_and_groups_of_their_text(font: Path) -> None:
    rows = concat(list(read_all(emoji_of(font)).values()))
    groups = dict(zip(rows.ids, rows.known_labels().tolist(), strict=True))
    # Sorted: Flags, Food & Drink, People & Body.
    assert groups == {"1F1E9-1F1EA": 0, "1F355": 1, "1F44D": 2, "1F44D-1F3FF": 2, "lost": -1}
    assert {image.shape for image in by_id(read_all(emoji_of(font, 8))).values()} == {(3, 8, 8)}


@pytest.mark.parametrize("background", ["white", "#102030"])
def test_pictures_are_drawn_in_the_middle_of_a_square_of_the_background(font: Path, background: str) -> None:
    found = by_id(read_all(emoji_of(font, background=background)))
    behind = np.array([255, 255, 255] if background == "white" else [16, 32, 48])
    # 12 x 8 pixels in 12 x 12: two rows above, then the transparent frame of one pixel.
    expected = np.broadcast_to(behind[:, None, None], (3, 12, 12)).copy()
    expected[:, 3:9, 1:11] = np.array([200, 0, 0])[:, None, None]
    np.testing.assert_array_equal(found["1F44D"], expected)
    half = found["1F355"][:, 6, 6].astype(int)  # black of alpha 128 over the background
    np.testing.assert_allclose(half, behind * 127 / 255, atol=1)


def test_tables_of_apple_are_read_too(tmp_path: Path) -> None:
    path = write_font(tmp_path / "a.ttf", {"pizza": picture(RED)}, {PIZZA: "pizza"}, table="sbix")
    assert by_id(read_all(emoji_of(path)))["1F355"][:, 6, 6].tolist() == [200, 0, 0]
    path.write_bytes(path.read_bytes().replace(b"sbix", b"sbiy"))
    with pytest.raises(UserError, match="no colour bitmaps"):
        open_source(emoji_of(path), 0)


def many(tmp_path: Path) -> Path:
    """24 emoji, each in six skin tones, and a copy of one of them under another name."""
    people = range(0x1F442, 0x1F442 + 24)
    tones = range(0x1F3FB, 0x1F400)
    pictures = {f"p{p:X}": picture((p % 251, 9, 9, 255)) for p in people}
    pictures |= {f"p{p:X}.{t:X}": picture((p % 251, t % 251, 90, 255)) for p in people for t in tones}
    pictures["copy"] = pictures["p1F443"]
    return write_font(
        tmp_path / "many.ttf",
        pictures,
        {**{p: f"p{p:X}" for p in people}, **{t: f"t{t:X}" for t in tones}, PIZZA: "copy"},
        {f"p{p:X}.{t:X}": [f"p{p:X}", f"t{t:X}"] for p in people for t in tones},
    )


def test_no_image_has_a_twin_in_another_split_of_the_seed(tmp_path: Path) -> None:
    data = emoji_of(many(tmp_path))
    found = [splits_of(data, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    for of_seed in found[1:]:
        where: dict[str, set[Split]] = {}
        for name, split in of_seed.items():
            where.setdefault(name.partition("-")[0], set()).add(split)
        assert all(len(splits) == 1 for splits in where.values())
        assert set(of_seed.values()) == set(SPLITS)
        assert where["1F443"] == where["1F355"]  # the same picture


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        (("1F468-1F3FD-200D-1F680", "1F469-200D-1F680"), True),  # astronauts
        (("26F9-FE0F-200D-2640-FE0F", "26F9-1F3FB"), True),  # people with a ball
        (("1F46B", "1F9D1-200D-1F91D-200D-1F9D1"), True),  # people holding hands
        (("1F491", "1F469-200D-2764-FE0F-200D-1F468"), True),  # couples
        (("1F468-200D-1F469-200D-1F466", "1F46A"), True),  # families
        (("1F468-200D-1F680", "1F468-200D-1F52C"), False),  # astronaut, scientist
        (("2640", "2642"), False),  # two signs alone
        (("1F1E9-1F1EA", "1F1EA-1F1E9"), True),  # letters of a flag are not ordered: rather too careful
    ],
)
def test_variants(texts: tuple[str, str], same: bool) -> None:
    keys = [emoji_names.variant_key(emoji_names.parse_text(text)) for text in texts]
    assert (keys[0] == keys[1]) == same


@pytest.mark.parametrize(("split_by", "together"), [("face", True), ("variant", False)])
def test_variants_are_held_out_together_or_one_by_one(split_by: Any, together: bool, tmp_path: Path) -> None:
    tones = range(0x1F3FB, 0x1F400)
    pictures = {f"thumb{tone:x}": picture((tone % 256, 0, 0, 255)) for tone in tones}
    singles = {THUMB: "thumb", **{tone: f"tone{tone:x}" for tone in tones}}
    ligatures = {f"thumb{tone:x}": ["thumb", f"tone{tone:x}"] for tone in tones}
    path = write_font(tmp_path / "a.ttf", {"thumb": picture(BLUE), **pictures}, singles, ligatures)
    found = read_all(emoji_of(path, split_by=split_by, valid_fraction=0.2))
    assert (len(found) == 1) == together
    assert sum(len(rows.ids) for rows in found.values()) == 6


def test_a_font_that_reverses_a_text_changes_neither_its_id_nor_its_group() -> None:
    reversed_text = emoji_names.parse_text("2640-200D-26F9-1F3FB")
    listed = emoji_names.write_text(emoji_names.canonical(reversed_text))
    assert listed == "26F9-1F3FB-200D-2640-FE0F"
    assert emoji_names.group(reversed_text) == "People & Body"
    # Texts that are not listed.
    assert emoji_names.group((0x1F468, 0x200D, 0x1F4BF)) == "People & Body"
    assert emoji_names.group((0x41,)) is None


def test_a_wrong_file_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"none\.ttf"):
        open_source(emoji_of(tmp_path / "none.ttf"), 0)
    (tmp_path / "text.ttf").write_text("hello")
    with pytest.raises(UserError, match="not a font"):
        open_source(emoji_of(tmp_path / "text.ttf"), 0)
    monkeypatch.setattr(emoji, "PLACES", ())
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        open_source(DataConfig(source="emoji", image_size=12), 0)


def test_a_damaged_picture_is_rejected(tmp_path: Path) -> None:
    pictures = {"pizza": picture(RED), "thumb": b"\x89PNG broken"}
    path = write_font(tmp_path / "a.ttf", pictures, {PIZZA: "pizza", THUMB: "thumb"})
    parts = read_all(emoji_of(path)).values()
    assert [reject.id for rows in parts for reject in rows.rejects] == ["1F44D"]
    assert [name for rows in parts for name in rows.ids] == ["1F355"]


def test_wrong_settings_are_refused() -> None:
    flags = {"source": "emoji", "image_size": "32", "binarize": "none"}
    for name, value in (("channels", "1"), ("background", "no colour"), ("background", "#ff000080")):
        with pytest.raises(UserError, match="channels must be 3" if name == "channels" else value):
            resolve("cifar10", None, {"data": {**flags, name: value}})


@pytest.mark.skipif(not NOTO.is_file(), reason="package fonts-noto-color-emoji is not installed")
def test_noto_is_found_and_read_whole() -> None:
    data = DataConfig(source="emoji", image_size=16)
    source = open_source(data, 0)
    counts = [source.count(split) or 0 for split in SPLITS]
    assert sum(counts) > 3500
    assert counts[1] == pytest.approx(0.1 * sum(counts), rel=0.35)
    rows = concat([shard.read() for shard in source.shards("valid")])
    assert len(rows) == counts[1]
    assert rows.labels is not None
    assert (rows.labels >= 0).mean() > 0.98
    corners = rows.images[:, :, 0, 0]
    assert (corners == 255).all(1).mean() > 0.8
