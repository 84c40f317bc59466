"""Classes and words of images: from each kind of source, through prepared sets, to batches of training."""

from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.vocabulary import Classes, Words, learned, words_in
from npdraw_dist.data import parquet
from npdraw_dist.data.parquet import images_to_parquet
from npdraw_dist.data.parses import Conditions, Parses
from npdraw_dist.data.readers import emoji_names
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.training.feed import Feed, MemoryFeed, Share, StreamFeed
from tests.helpers.prepared import prepare
from tests.helpers.rows import Parsed, open_parses, write_run

LOCAL = fs.LocalFileSystem()
NAMES = ("cat", "dog", "eel")
COUNT = 48


def class_and_words(number: int) -> tuple[str, str]:
    """Class and words of a picture; every fifth has no words."""
    return NAMES[number % 3], "" if number % 5 == 0 else f"A {NAMES[number % 3]} of number {number}"


def grey(number: int) -> NDArray[np.uint8]:
    return np.full((8, 8), number, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose grey is their number, in folders of their class, with words beside them."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        name, words = class_and_words(number)
        path = root / name / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grey(number)).save(path)
        if words:
            path.with_suffix(".txt").write_text(f"{words}\n")
    return root


def config(source: Any, path: object) -> DataConfig:
    return DataConfig(source=source, path=str(path), image_size=8, channels=1, binarize="none")


def read_words(data: DataConfig) -> dict[int, tuple[str, str]]:
    """number of the picture -> class and words, over all splits."""
    source = open_source(data, 0)
    classes, found = source.facts()["classes"], dict[int, tuple[str, str]]()
    for split in ("train", "valid", "test"):
        for shard in source.shards(split):
            rows = shard.read()
            for image, label, words in zip(rows.images, rows.known_labels(), rows.words or [], strict=True):
                found[int(image[0, 0, 0])] = (classes[label], words)
    return found


EXPECTED = {number: class_and_words(number) for number in range(COUNT)}


def test_a_folder_says_class_and_words(folder: Path) -> None:
    assert read_words(config("imagefolder", folder)) == EXPECTED


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_prepared_set_keeps_classes_and_words(folder: Path, tmp_path: Path, form: Any) -> None:
    prepare(config("imagefolder", folder), 0, str(tmp_path / "out"), form)
    assert read_words(config(form, tmp_path / "out")) == EXPECTED


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"words": ["", None, "x"], "caption": ["one", "two", None]}, ["one", "two", "x"]),
        ({"caption": ["one", None, "three"]}, ["one", "", "three"]),
        ({"caption": pa.array([["one"], None, []])}, ["['one']", "", ""]),
        ({"caption": [1, 2, None]}, ["1", "2", ""]),
    ],
)
def test_texts_of_parquet_may_be_of_any_type_and_in_two_columns(
    columns: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([grey(n)[None] for n in range(3)]))
    pq.write_table(pa.table({"id": list("abc"), "image": images, **columns}), tmp_path / "a.parquet")
    source = open_source(config("parquet", tmp_path / "a.parquet"), 0)
    rows = Rows.cat([shard.read() for split in SPLITS for shard in source.shards(split)])
    words = dict(zip(rows.ids, rows.words or [], strict=True))
    assert [words[name] for name in "abc"] == expected


def test_an_emoji_has_the_words_of_its_name() -> None:
    assert emoji_names.words((0x1F602,)).startswith("face with tears of joy")
    waving = emoji_names.words((0x1F44B, 0x1F3FF))
    assert {"waving", "hand", "dark", "skin", "tone"} <= set(waving.split())
    assert "medium" not in waving
    assert emoji_names.words((0xE000,)) == ""


def parses_with(conditions: Conditions, folder: Path) -> Parses:
    """Parses of pictures whose pixels, parts and words all say their number."""
    shards = list[Parsed]()
    for file in range(4):
        numbers = np.arange(file, COUNT, 4)
        what = torch.from_numpy(np.stack([numbers, numbers], 1))
        z = PartSequence(torch.ones_like(what, dtype=torch.bool), what % 4, what)
        rows = Rows(
            [f"x{n:03d}" for n in numbers],
            np.stack([grey(n)[None] for n in numbers.tolist()]),
            numbers % 3,
            words=[class_and_words(n)[1] for n in numbers.tolist()],
        )
        shards.append(Parsed(rows, z))
    with mock.patch.object(parquet, "ROW_GROUP_BYTES", 4 * 8 * 8):
        write_run(LOCAL, str(folder), {"train": shards})
    return replace(open_parses(LOCAL, str(folder)), conditions=conditions)


def classes(turned: bool) -> Conditions:
    """The model's classes in another order than the data's, and one that the model lacks, if turned."""
    entries = ("dog", "cat") if turned else NAMES
    return Conditions(Classes(entries, 1), NAMES)


def words() -> Conditions:
    found = {word for number in range(COUNT) for word in words_in(class_and_words(number)[1])}
    return Conditions(Words(learned(dict.fromkeys(found, 1)), 8), NAMES)


def check(batch: Batch, conditions: Conditions) -> None:
    for number, row in zip(batch.images[:, 0, 0, 0].tolist(), batch.condition, strict=True):
        name, text = class_and_words(number)
        if conditions.vocabulary.kind == "class":
            assert row.tolist() == [conditions.vocabulary.numbers.get(name, 0)]
        else:
            expected = [conditions.vocabulary.numbers[word] for word in words_in(text)]
            assert [token for token in row.tolist() if token] == expected


@pytest.mark.parametrize(
    "conditions", [classes(False), classes(True), words()], ids=["class", "turned", "words"]
)
def test_conditions_stay_with_their_images(conditions: Conditions, tmp_path: Path) -> None:
    """Read whole, by row, as a sample, shuffled in memory, streamed by two ranks, and after a resume."""
    parses = parses_with(conditions, tmp_path)
    whole = parses.in_id_order()
    check(whole, conditions)
    check(parses.at(np.array([5, 40, 7])), conditions)
    check(parses.sample(10, 1), conditions)
    groups = parses.groups(4 << 20)
    for rank in range(2):
        share = Share(8, 0, rank, 2)
        stream = StreamFeed(groups.rows, partial(parses.stream, groups), share, 16)
        feeds: tuple[Feed, ...] = (MemoryFeed(whole, share), stream)
        for feed, first in product(feeds, (0, 3)):  # from the beginning, and as a resumed run
            for _, rows in islice(feed.steps(first), 8):
                check(rows, conditions)


def test_a_parquet_file_may_name_its_classes_as_hugging_face_does(tmp_path: Path) -> None:
    rows = Rows(["a", "b"], np.stack([grey(0)[None], grey(1)[None]]), np.array([1, 0]))
    (tmp_path / "a.parquet").write_bytes(images_to_parquet(rows, "train", ["no", "yes"]))
    assert open_source(config("parquet", tmp_path / "a.parquet"), 0).facts()["classes"] == ["no", "yes"]
