"""The user's own images: folders, tars and Parquet, with all the bad rows that come with them."""

import errno
import pickle
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data import parquet
from npdraw_dist.data.readers import files, tars
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.system.errors import UserError
from tests.helpers.image_files import write_tar
from tests.helpers.rows import by_id, read_all
from tests.helpers.studio_models import png_of


def config(source: Any, path: object, channels: Any = 3, **values: Any) -> DataConfig:
    settings = {"image_size": 8, "channels": channels, "binarize": "none", **values}
    return DataConfig(source=source, path=str(path), **settings)


def read_train(source: str, path: Path, **values: Any) -> Rows:
    """All images, as training images."""
    return read_all(config(source, path, valid_fraction=0, test_fraction=0, **values))["train"]


def colour(number: int) -> NDArray[np.uint8]:
    """(8, 8, 3), different for each number."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def stacked(count: int) -> NDArray[np.uint8]:
    return np.stack([colour(n).transpose(2, 0, 1) for n in range(count)])


def reasons(rows: Rows) -> dict[str, str]:
    return {reject.id: reject.reason for reject in rows.rejects}


def ids(data: DataConfig) -> list[str]:
    return sorted(by_id(read_all(data)))


def write_folder(root: Path, count: int = 60) -> None:
    for number in range(count):
        path = root / ("cat", "dog")[number % 2] / "deep" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_of(colour(number)))


def test_imagefolder_splits_by_hash_and_labels_by_first_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, 40)
    before = read_all(config("imagefolder", tmp_path))
    write_folder(tmp_path)
    parts = read_all(config("imagefolder", tmp_path, shard_rows=7))
    assert sorted(by_id(parts)) == sorted(f"{('cat', 'dog')[n % 2]}/deep/{n:03d}.png" for n in range(60))
    for split, rows in parts.items():
        assert rows.labels is not None
        for name, label, image in zip(rows.ids, rows.labels, rows.images, strict=True):
            assert label == int(name.startswith("dog"))
            np.testing.assert_array_equal(image, colour(int(name[-7:-4])).transpose(2, 0, 1))
        assert set(before[split].ids) <= set(rows.ids)  # a new image moves no other to another split
    train = set(parts["train"].ids)
    assert 30 < len(train) < 58
    half = read_all(config("imagefolder", tmp_path, fraction=0.5))["train"]
    assert set(half.ids) < train
    assert len(half) == round(len(train) / 2)


def test_folders_that_are_splits(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        write_folder(tmp_path / "pictures" / split, 10)
        write_tar(tmp_path / "tars" / split / "0.tar", samples(number * 5, 5))
    parts = read_all(config("imagefolder", tmp_path / "pictures"))
    assert [len(parts[split]) for split in SPLITS] == [10, 10, 10]
    assert parts["valid"].ids[0].startswith("val/")
    assert set(parts["valid"].known_labels().tolist()) == {0, 1}
    parts = read_all(config("webdataset", tmp_path / "tars"))
    assert [parts[split].ids for split in SPLITS] == [keys(5), keys(5, 10), keys(10, 15)]


@pytest.mark.parametrize(
    ("folders", "counts", "classes"),
    [
        ("training testing", (10, 0, 10), 2),
        ("Train Dev Test", (10, 10, 10), 2),
        ("train bus car", (30, 0, 0), 3),  # of vehicles
    ],
)
def test_folders_by_other_names(folders: str, counts: tuple[int, ...], classes: int, tmp_path: Path) -> None:
    for folder in folders.split():
        write_folder(tmp_path / folder, 10)
    parts = read_all(config("imagefolder", tmp_path, valid_fraction=0.0, test_fraction=0.0))
    assert tuple(len(parts.get(split, ())) for split in SPLITS) == counts
    assert len(set(parts["train"].known_labels().tolist())) == classes


def test_other_sizes_are_padded_or_cropped_to_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = (10, 20, 30)
    (tmp_path / "wide.png").write_bytes(png_of(wide))
    cropped = read_train("imagefolder", tmp_path, fit="crop").images
    assert cropped.shape == (1, 3, 8, 8)
    assert (cropped == np.array([10, 20, 30], np.uint8)[:, None, None]).all()
    padded = read_train("imagefolder", tmp_path, background="#0a0b0c").images
    assert padded[0, :, 0, 0].tolist() == [10, 11, 12]


def samples(start: int, count: int) -> list[tuple[str, bytes]]:
    made = []
    for n in range(start, start + count):
        made += [(f"k{n:04d}.cls", str(n % 5).encode()), (f"k{n:04d}.png", png_of(colour(n)))]
    return made


def keys(*count: int) -> list[str]:
    return [f"k{n:04d}" for n in range(*count)]


def test_webdataset_brace_pattern(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"set-{shard:06d}.tar", samples(shard * 20, 20))
    data = config("webdataset", tmp_path / "set-{000000..000002}.tar")
    parts = read_all(data)
    assert sorted(by_id(parts)) == keys(60)
    for rows in parts.values():
        for name, label, image in zip(rows.ids, rows.known_labels(), rows.images, strict=True):
            assert label == int(name[1:]) % 5
            np.testing.assert_array_equal(image, colour(int(name[1:])).transpose(2, 0, 1))
    shards = open_source(data, 0).shards("train")
    assert [shard.name for shard in shards] == ["train-00000", "train-00001", "train-00002"]
    assert pickle.loads(pickle.dumps(shards[2])).read().ids == shards[2].read().ids
    tenth, half = (set(read_all(config("webdataset", tmp_path, fraction=f))["train"].ids) for f in (0.1, 0.5))
    assert tenth < half < set(parts["train"].ids)


def test_webdataset_at_uris_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"s{shard}.tar", samples(shard * 5, 5))
    monkeypatch.chdir(tmp_path)
    uri = (tmp_path / "s").as_uri() + "{0..1}.tar"
    for pattern, count in ((uri, 10), ("s{0..1}.tar", 10), ("./s0.tar", 5), (".", 10)):
        assert ids(config("webdataset", pattern)) == keys(count)
    with pytest.raises(UserError, match="cannot open"):
        open_source(config("webdataset", "nosuchscheme://bucket/s{0..1}.tar"), 0)


def test_webdataset_truncated_member_loses_only_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, samples(0, 10))
    with tarfile.open(path) as tar:
        cut = tar.getmember("k0007.png").offset_data + 50
    path.write_bytes(path.read_bytes()[:cut])
    rows = read_train("webdataset", path)
    assert rows.ids == keys(7)
    assert reasons(rows) == {"k0007": "truncated tar member"}


@pytest.mark.parametrize("source", ["imagefolder", "webdataset", "parquet"])
def test_a_storage_that_fails_makes_no_bad_rows(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad rows would be left out for good, though the pictures are whole."""
    write_folder(tmp_path / "imagefolder", 8)
    write_tar(tmp_path / "webdataset" / "a.tar", samples(0, 40))
    (tmp_path / "parquet").mkdir()
    write_table(tmp_path / "parquet" / "a.parquet", tensors(stacked(8)), id=[f"{n}" for n in range(8)])
    data = config(source, tmp_path / source, valid_fraction=0, test_fraction=0)
    (shard,) = open_source(data, 0).shards("train")
    if source == "parquet":
        monkeypatch.setattr(pq.ParquetFile, "read_row_groups", Mock(side_effect=OSError("timed out")))
        monkeypatch.setattr(parquet, "require_readable", Mock(side_effect=OSError("timed out")))
    elif source == "webdataset":
        monkeypatch.setattr(tars, "tar_file_iterator", partial(broken_tar, tars.tar_file_iterator))
    else:
        monkeypatch.setattr(files.Path, "read_bytes", Mock(side_effect=OSError(errno.EIO, "timed out")))
    with pytest.raises(OSError, match="timed out"):
        shard.read()


def broken_tar(read: Any, stream: Any, handler: Any, **options: Any) -> Iterator[Any]:
    """Yields the first files of a tar; then the connection is lost."""
    yield from islice(read(stream, handler=handler, **options), 5)
    handler(OSError("timed out"))


def test_webdataset_bad_samples(tmp_path: Path) -> None:
    bad = [("b1.png", b"no picture"), ("b2.cls", b"3"), ("b4.cls", b"cat"), ("b4.png", png_of(colour(1)))]
    write_tar(tmp_path / "a.tar", samples(0, 4) + bad + samples(2, 1) + samples(3, 1) + samples(3, 1))
    rows = read_train("webdataset", tmp_path)
    assert rows.ids == keys(4)
    found = reasons(rows)
    assert set(found) == {"b1", "b2", "b4", "k0002", "k0003"}
    assert found["k0002"] == "duplicate id"
    assert found["b2"] == "no image member"


def test_webdataset_samples_of_several_pictures(tmp_path: Path) -> None:
    """The name without a dot counts. Names with a dot, such as Kaggle's cats, are rejected as one sample."""
    masked = [("a.mask.png", png_of(colour(1))), ("a.png", png_of(colour(0))), ("a.cls", b"1" * 5000)]
    write_tar(tmp_path / "a.tar", [*masked[:2], ("a.cls", b"3")])
    rows = read_train("webdataset", tmp_path)
    np.testing.assert_array_equal(rows.images[0], colour(0).transpose(2, 0, 1))
    cats = [(f"cat.{n}.png", png_of(colour(n))) for n in range(3)]
    write_tar(tmp_path / "a.tar", [*masked, *cats, *samples(7, 1)])
    rows = read_train("webdataset", tmp_path)
    assert rows.ids == keys(7, 8)
    assert reasons(rows)["cat"] == "3 image members, such as 0.png and 1.png"
    assert reasons(rows)["a"].endswith("is no integer")


def tensors(array: NDArray[Any]) -> pa.ExtensionArray:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


def write_table(path: Path, image: Any, row_group: int | None = None, **columns: Any) -> None:
    pq.write_table(pa.table({"image": image, **columns}), path, row_group_size=row_group)


@pytest.mark.parametrize(
    "form", ["tensor", "plain tensor", "floats", "list", "list_shape", "hwc", "bytes", "struct"]
)
def test_parquet_image_columns(tmp_path: Path, form: str) -> None:
    images = stacked(12)
    encoded = [png_of(image.transpose(1, 2, 0)) for image in images]
    column = {
        "tensor": lambda: tensors(images),
        "plain tensor": lambda: pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.uint8(), (3, 8, 8)),
            pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 3 * 8 * 8),
        ),
        "floats": lambda: tensors((images / 255).astype(np.float32)),
        "list": lambda: pa.array([image.ravel() for image in images]),
        "list_shape": lambda: pa.array([image.transpose(1, 2, 0).ravel() for image in images]),
        "hwc": lambda: tensors(images.transpose(0, 2, 3, 1)),
        "bytes": lambda: encoded,
        "struct": lambda: [{"bytes": content, "path": "x.png"} for content in encoded],
    }[form]()
    shape = {"shape": [[8, 8, 3]] * 12} if form == "list_shape" else {}
    write_table(tmp_path / "a.parquet", column, row_group=5, label=list(range(12)), **shape)
    rows = read_train("parquet", tmp_path, shard_rows=5)
    assert rows.ids == [f"a.parquet-{n:06d}" for n in range(12)]
    np.testing.assert_array_equal(rows.images, images)
    np.testing.assert_array_equal(rows.labels, np.arange(12))


@pytest.mark.parametrize("form", ["new axis", "channels last in memory", "stated by the format"])
def test_parquet_tensors_with_a_permutation(tmp_path: Path, form: str) -> None:
    images = stacked(3)[:, :, :, :6]  # (3, 3, 8, 6)
    if form == "new axis":
        images = images[:, 0].copy()[:, None]
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    else:
        last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(last.transpose(0, 3, 1, 2))
        if form == "stated by the format":
            kind = pa.fixed_shape_tensor(pa.uint8(), (8, 6, 3), permutation=[2, 0, 1])
            column = pa.ExtensionArray.from_storage(kind, column.storage)
    assert column.type.permutation != [0, 1, 2]
    write_table(tmp_path / "a.parquet", column)
    rows = read_train("parquet", tmp_path, channels=images.shape[1], image_size=6, fit="crop")
    np.testing.assert_array_equal(rows.images, images[:, :, 1:7])  # the centre square of 8 x 6


def test_parquet_shards_are_runs_of_row_groups_over_files(tmp_path: Path) -> None:
    images, names = stacked(100), [f"r{n:03d}" for n in range(100)]
    for start in (0, 50):
        rows = slice(start, start + 50)
        write_table(tmp_path / f"{start}.parquet", tensors(images[rows]), row_group=10, id=names[rows])
    data = config("parquet", tmp_path.as_uri(), shard_rows=25)
    assert len(open_source(data, 0).shards("train")) == 6
    parts = read_all(data)
    found = by_id(parts)
    assert sorted(found) == names
    for number, name in enumerate(names):
        np.testing.assert_array_equal(found[name], images[number])
    few = set(read_all(config("parquet", tmp_path, fraction=0.2))["train"].ids)
    assert few < set(parts["train"].ids)


def test_parquet_split_column(tmp_path: Path) -> None:
    words = ["train", "validation", "test", "train", "holdout"]
    write_table(tmp_path / "a.parquet", tensors(stacked(5)), id=list("abcde"), split=words)
    parts = read_all(config("parquet", tmp_path))
    assert [parts[split].ids for split in SPLITS] == [["a", "d"], ["b"], ["c"]]
    assert [name for rows in parts.values() for name in reasons(rows)] == ["e"]


def test_parquet_bad_rows(tmp_path: Path) -> None:
    images = (stacked(6) / 255).astype(np.float32)
    images[1, 0, 0, 0] = np.nan
    images[2, 0, 0, 0] = np.inf
    images[3] *= 255
    write_table(tmp_path / "a.parquet", tensors(images), id=["a", "nan", "inf", "range", "b", "a"])
    rows = read_train("parquet", tmp_path)
    assert rows.ids == ["a", "b"]
    assert set(reasons(rows)) == {"nan", "inf", "range", "a"}
    assert reasons(rows)["a"] == "duplicate id"


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (pa.array([1, 0, 3], pa.uint64()), {"a": 1, "b": 0, "c": 3}),
        (pa.array([1, 0, 2**63], pa.uint64()), {"a": 1, "b": 0}),
        (pa.array([1, -1, None]), {"a": 1, "b": -1, "c": -1}),
        (pa.array([1, -2, -3]), {"a": 1}),
    ],
)
def test_parquet_labels_are_classes_or_their_rows_are_rejected(
    labels: pa.Array, found: dict[str, int], tmp_path: Path
) -> None:
    write_table(tmp_path / "a.parquet", tensors(stacked(3)), id=list("abc"), label=labels)
    rows = read_train("parquet", tmp_path)
    assert rows.labels is not None
    assert dict(zip(rows.ids, rows.labels.tolist(), strict=True)) == found
    assert reasons(rows).keys() == set("abc") - found.keys()


def test_parquet_shards_may_lie_in_a_folder_of_any_name(tmp_path: Path) -> None:
    for name in ("images", "test", "valid"):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "a.parquet", tensors(stacked(20)), id=[f"{n}" for n in range(20)])
        parts = read_all(config("parquet", tmp_path / name, valid_fraction=0.2, test_fraction=0.2))
        assert all(len(parts[split]) for split in SPLITS)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        ("a/train-00000-of-00002 a/train-1-of-2 a/validation-0-of-1 a/test-0-of-1", (2, 1, 1)),
        ("train-0 dev-0 dev-1 test-0", (1, 2, 1)),
        ("training-0 valid/test-0 test/val-0 test-0", (1, 1, 2)),
        ("train test validation", (1, 1, 1)),
        ("city-train-000000 city-train-000001 city-val-000000 Test", (2, 1, 1)),
        ("a split=test/a latest train-test", (3, 0, 1)),
    ],
)
def test_files_state_their_split_by_name(names: str, counts: tuple[int, ...], tmp_path: Path) -> None:
    """A word states it, as for Hugging Face, but two words do not. A folder goes before."""
    for number, name in enumerate(names.split()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        own = [f"{name} {n}" for n in range(20)]
        write_table(tmp_path / f"{name}.parquet", tensors(stacked(20)), id=own)
        write_tar(tmp_path / f"{name}.tar", samples(20 * number, 20))
    for source in ("parquet", "webdataset"):
        parts = read_all(config(source, tmp_path, valid_fraction=0.0, test_fraction=0.0))
        assert [len(parts.get(split, ())) // 20 for split in SPLITS] == list(counts)


@pytest.mark.parametrize("name", ["test-00000-of-00001", "test/images"])
def test_files_of_a_held_out_split_alone_are_data_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    write_table(path, tensors(stacked(20)), id=[f"{n}" for n in range(20)])
    for where in (path, path.parent):
        assert len(read_train("parquet", where)) == 20


def test_parquet_rows_that_lack_a_value(tmp_path: Path) -> None:
    mask = pa.array([False, False, False, False, True])
    values = pa.FixedSizeListArray.from_arrays(pa.array(stacked(5).ravel()), 3 * 8 * 8, mask=mask)
    images = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (3, 8, 8)), values)
    names, labels = ["a", "b", "a", None, "d"], [1, None, 2, 3, 4]
    write_table(tmp_path / "x.parquet", images, id=names, label=labels)
    rows = read_train("parquet", tmp_path)
    assert rows.ids == ["a", "b", "x.parquet-000003"]
    assert reasons(rows) == {"a": "duplicate id", "d": "no image"}
    assert rows.known_labels().tolist() == [1, -1, 3]


def test_parquet_lists_that_are_no_image(tmp_path: Path) -> None:
    good = colour(0).transpose(2, 0, 1).ravel()
    values = pa.array([good, good[:-1], good[:64], None, good[:0]], pa.list_(pa.uint8()))
    shapes = [[3, 8, 8], [3, 8, 8], [1, 8, 8], [3, 8, 8], [3, 0, 8]]
    write_table(tmp_path / "a.parquet", values, shape=shapes)
    rows = read_train("parquet", tmp_path)
    assert rows.ids == ["a.parquet-000000", "a.parquet-000002"]  # in colour, and in grey
    assert len(rows.rejects) == 3
