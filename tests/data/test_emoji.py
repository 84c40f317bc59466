"""The source `emoji`, on tiny fonts that the test builds, and on the Debian package where it is there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.readers import emoji, emoji_names
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS, Split
from tests.helpers.bitmap_fonts import picture, write_font
from tests.helpers.rows import concat

NOTO = Path(emoji.PLACES[0])
RED, BLUE, HALF = (200, 0, 0, 255), (0, 0, 200, 255), (0, 0, 0, 128)
THUMB, DARK, HEART, PIZZA, FLAG_D, FLAG_E = 0x1F44D, 0x1F3FF, 0x2764, 0x1F355, 0x1F1E9, 0x1F1EA


def read(data: DataConfig, split: Split, seed: int = 0) -> Rows:
    return concat([shard.read() for shard in open_source(data, seed).shards(split)])


def read_all(data: DataConfig, seed: int = 0) -> dict[str, tuple[Split, np.ndarray, int]]:
    """id -> (split, image, label)."""
    found: dict[str, tuple[Split, np.ndarray, int]] = {}
    for split in SPLITS:
        if not open_source(data, seed).shards(split):
            continue
        rows = read(data, split, seed)
        assert rows.labels is not None
        assert rows.rejects == []
        for name, image, label in zip(rows.ids, rows.images, rows.labels, strict=True):
            assert name not in found
            found[name] = split, image, int(label)
    return found


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
    found = read_all(DataConfig(source="emoji", path=str(font), image_size=12))
    assert set(found) == {"1F44D", "1F44D-1F3FF", "1F355", "1F1E9-1F1EA", "lost"}
    groups = {name: label for name, (_, _, label) in found.items()}
    # Sorted: Flags, Food & Drink, People & Body.
    assert groups == {"1F1E9-1F1EA": 0, "1F355": 1, "1F44D": 2, "1F44D-1F3FF": 2, "lost": -1}


@pytest.mark.parametrize("background", ["white", "#102030"])
def test_pictures_are_drawn_in_the_middle_of_a_square_of_the_background(font: Path, background: str) -> None:
    data = DataConfig(source="emoji", path=str(font), image_size=12, background=background)
    found = read_all(data)
    behind = np.array([255, 255, 255] if background == "white" else [16, 32, 48])
    # 12 x 8 pixels in 12 x 12: two rows above, then the transparent frame of one pixel.
    expected = np.broadcast_to(behind[:, None, None], (3, 12, 12)).copy()
    expected[:, 3:9, 1:11] = np.array([200, 0, 0])[:, None, None]
    np.testing.assert_array_equal(found["1F44D"][1], expected)
    half = found["1F355"][1][:, 6, 6].astype(int)  # black of alpha 128 over the background
    np.testing.assert_allclose(half, behind * 127 / 255, atol=1)


@pytest.mark.parametrize("size", [8, 24])
def test_any_size(font: Path, size: int) -> None:
    assert {
        i.shape for _, i, _ in read_all(DataConfig(source="emoji", path=str(font), image_size=size)).values()
    } == {(3, size, size)}


def test_tables_of_apple_are_read_too(tmp_path: Path) -> None:
    path = write_font(tmp_path / "a.ttf", {"pizza": picture(RED)}, {PIZZA: "pizza"}, table="sbix")
    found = read_all(DataConfig(source="emoji", path=str(path), image_size=12))
    assert found["1F355"][1][:, 6, 6].tolist() == [200, 0, 0]


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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_image_has_a_twin_in_another_split(tmp_path: Path, seed: int) -> None:
    data = DataConfig(source="emoji", path=str(many(tmp_path)), image_size=12)
    found = read_all(data, seed)
    splits: dict[str, set[Split]] = {}
    for name, (split, _, _) in found.items():
        splits.setdefault(name.partition("-")[0], set()).add(split)
    assert all(len(where) == 1 for where in splits.values())
    assert {split for split, _, _ in found.values()} == set(SPLITS)
    assert splits["1F443"] == splits["1F355"]  # the same picture


def test_splits_differ_by_seed_and_are_reproducible(tmp_path: Path) -> None:
    data = DataConfig(source="emoji", path=str(many(tmp_path)), image_size=12)
    of_seed = [{name: split for name, (split, _, _) in read_all(data, seed).items()} for seed in (0, 0, 1)]
    assert of_seed[0] == of_seed[1] != of_seed[2]


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        (("1F468-1F3FD-200D-1F680", "1F469-200D-1F680"), True),  # astronauts
        (("26F9-FE0F-200D-2640-FE0F", "26F9-1F3FB"), True),  # people with a ball
        (("1F46B", "1F9D1-200D-1F91D-200D-1F9D1"), True),  # people holding hands
        (("1F491", "1F469-200D-2764-FE0F-200D-1F468"), True),  # couples
        (("1F48F", "1F491"), False),  # a kiss, a couple
        (("1F468-200D-1F469-200D-1F466", "1F46A"), True),  # families
        (("1F934", "1F478"), True),  # prince, princess
        (("1F468-200D-1F680", "1F468-200D-1F52C"), False),  # astronaut, scientist
        (("1F600", "1F603"), False),  # two faces
        (("2640", "2642"), False),  # two signs alone
        (("1F1E9-1F1EA", "1F1EA-1F1E9"), True),  # letters of a flag are not ordered: rather too careful
    ],
)
def test_variants(texts: tuple[str, str], same: bool) -> None:
    keys = [emoji_names.variant_key(emoji_names.parse_text(text)) for text in texts]
    assert (keys[0] == keys[1]) == same


def test_a_font_that_reverses_a_text_changes_neither_its_id_nor_its_group() -> None:
    reversed_text = emoji_names.parse_text("2640-200D-26F9-1F3FB")
    listed = emoji_names.write_text(emoji_names.canonical(reversed_text))
    assert listed == "26F9-1F3FB-200D-2640-FE0F"
    assert emoji_names.group(reversed_text) == "People & Body"


def test_groups_of_texts_that_are_not_listed() -> None:
    assert emoji_names.group((0x1F468, 0x200D, 0x1F4BF)) == "People & Body"
    assert emoji_names.group((0x41,)) is None


def _missing(tmp_path: Path) -> Path:
    return tmp_path / "none.ttf"


def _no_font(tmp_path: Path) -> Path:
    path = tmp_path / "text.ttf"
    path.write_text("hello")
    return path


def _no_bitmaps(tmp_path: Path) -> Path:
    path = write_font(tmp_path / "a.ttf", {"pizza": picture(RED)}, {PIZZA: "pizza"}, table="sbix")
    path.write_bytes(path.read_bytes().replace(b"sbix", b"sbiy"))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [(_missing, "none.ttf"), (_no_font, "no font"), (_no_bitmaps, "no colour bitmaps")],
)
def test_a_wrong_file_is_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(source="emoji", path=str(make(tmp_path)), image_size=12), 0)


def test_without_a_font_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "PLACES", ())
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        open_source(DataConfig(source="emoji", image_size=12), 0)


def test_a_damaged_picture_is_rejected(tmp_path: Path) -> None:
    pictures = {"pizza": picture(RED), "thumb": b"\x89PNG broken"}
    path = write_font(tmp_path / "a.ttf", pictures, {PIZZA: "pizza", THUMB: "thumb"})
    source = open_source(DataConfig(source="emoji", path=str(path), image_size=12), 0)
    rows = [shard.read() for split in SPLITS for shard in source.shards(split)]
    assert [reject.id for part in rows for reject in part.rejects] == ["1F44D"]
    assert [name for part in rows for name in part.ids] == ["1F355"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"channels": "1"}, "channels is 3"),
        ({"background": "no colour"}, "no colour"),
        ({"background": "#ff000080"}, "opaque"),
    ],
)
def test_wrong_settings_are_refused(flag: dict[str, str], message: str) -> None:
    flags = {"source": "emoji", "image_size": "32", "binarize": "none"}
    with pytest.raises(UserError, match=message):
        resolve("cifar10", None, {"data": flags | flag})


@pytest.mark.skipif(not NOTO.is_file(), reason="package fonts-noto-color-emoji is not installed")
def test_noto_is_found_and_read_whole() -> None:
    data = DataConfig(source="emoji", image_size=16)
    source = open_source(data, 0)
    counts = [source.count(split) or 0 for split in SPLITS]
    assert sum(counts) > 3500
    assert counts[1] == pytest.approx(0.1 * sum(counts), rel=0.35)
    rows = read(data, "valid")
    assert len(rows) == counts[1]
    assert rows.labels is not None
    assert (rows.labels >= 0).mean() > 0.98
    corners = rows.images[:, :, 0, 0]
    assert (corners == 255).all(1).mean() > 0.8
