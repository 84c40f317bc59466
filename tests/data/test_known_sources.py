"""The readers of known data sets, on tiny sets in the real on-disk layouts."""

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.readers import arrays
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS, Split
from tests.helpers.rows import concat

MNIST = Path(os.environ.get("NPDRAW_TEST_MNIST", Path(__file__).parents[3] / "shared/data/mnist9k"))
FASHION = Path("/usr/share/datasets/fashion-mnist")


def read(data: DataConfig, split: Split, seed: int = 0) -> Rows:
    return concat([shard.read() for shard in open_source(data, seed).shards(split)])


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, zipped: bool = False, train: int = 40, test: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for prefix, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            if zipped:
                (folder / f"{stem}.gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                (folder / stem).write_bytes(idx_bytes(array))
        made[prefix] = (images, labels)
    return made


def test_digits_are_scikit_learns_enlarged_and_stratified() -> None:
    data = DataConfig()
    source = open_source(data, 0)
    parts = {split: read(data, split) for split in SPLITS}
    raw = load_digits()
    np.testing.assert_array_equal(arrays.load_digits()[0], raw.images)
    names = [name for rows in parts.values() for name in rows.ids]
    assert sorted(names) == [f"digits-{i:06d}" for i in range(1797)]
    for split, rows in parts.items():
        index = [int(name.removeprefix("digits-")) for name in rows.ids]
        assert rows.labels is not None
        np.testing.assert_array_equal(rows.labels, raw.target[index])
        assert rows.images.shape[1:] == (1, 28, 28)
        # Means over 3x3 blocks of the digit itself are about the original pixels.
        small = rows.images[:, 0, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean((2, 4)) / 255 * 16
        assert np.abs(small - raw.images[index]).mean() < 1.0
        assert rows.images[:, 0, :2].max() == 0
        assert source.count(split) == len(rows)
        shares = np.bincount(rows.labels, minlength=10) / np.bincount(raw.target)
        assert np.ptp(shares) < 0.02
    assert len(parts["valid"]) == pytest.approx(180, abs=3)
    assert len(parts["test"]) == pytest.approx(180, abs=3)


def test_digits_are_reproducible_sharded_and_nested() -> None:
    few = read(DataConfig(fraction=0.01), "train")
    many = read(DataConfig(fraction=0.1), "train")
    count = open_source(DataConfig(), 0).count("train")
    assert count is not None
    assert len(few) == round(0.01 * count)
    assert len(many) == round(0.1 * count)
    assert set(few.ids) < set(many.ids)
    shards = open_source(DataConfig(shard_rows=500), 0).shards("train")
    assert [shard.name for shard in shards] == ["train-00000", "train-00001", "train-00002"]
    again = pickle.loads(pickle.dumps(shards[1])).read()
    assert again.ids == shards[1].read().ids
    assert len(again) == 500
    assert read(DataConfig(), "valid", seed=1).ids != read(DataConfig(), "valid", seed=0).ids
    assert len(read(DataConfig(fraction=0.01), "test")) == len(read(DataConfig(), "test"))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("source", "inner"), [("mnist", "MNIST/raw"), ("fashion_mnist", "")])
def test_idx_files(tmp_path: Path, source: Any, inner: str, zipped: bool) -> None:
    made = write_idx(tmp_path / inner, zipped)
    data = DataConfig(source=source, path=str(tmp_path), shard_rows=16)
    train, valid, test = (read(data, split) for split in SPLITS)
    assert (len(train), len(valid), len(test)) == (36, 4, 10)
    assert not set(train.ids) & set(valid.ids)
    for rows in (train, valid):
        index = [int(name.removeprefix(f"{source}-train-")) for name in rows.ids]
        np.testing.assert_array_equal(rows.images[:, 0], made["train"][0][index])
        np.testing.assert_array_equal(rows.labels, made["train"][1][index])
    assert test.ids[3] == f"{source}-test-000003"
    np.testing.assert_array_equal(test.images[:, 0], made["t10k"][0])


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_idx_names_the_file(tmp_path: Path, zipped: bool) -> None:
    write_idx(tmp_path, zipped)
    file = next(tmp_path.glob("train-images*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        open_source(DataConfig(source="mnist", path=str(tmp_path)), 0)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\0\0\x08\x03\0\0", b"PNG, no IDX at all"])
def test_broken_idx_header_names_the_file(tmp_path: Path, content: bytes) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte"):
        open_source(DataConfig(source="mnist", path=str(tmp_path)), 0)


@pytest.mark.parametrize("source", ["mnist", "fashion_mnist", "omniglot", "cifar10", "celeba"])
def test_missing_and_empty_paths(tmp_path: Path, source: Any) -> None:
    with pytest.raises(UserError, match="no folder"):
        open_source(DataConfig(source=source, path=str(tmp_path / "nowhere")), 0)
    with pytest.raises(UserError, match=r"lacks the files.*--data\.path must be a folder"):
        open_source(DataConfig(source=source, path=str(tmp_path)), 0)


def test_failed_download_says_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(root: Path, **_: object) -> None:
        (Path(root) / "half").write_text("x")
        raise RuntimeError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "MNIST", download)
    with pytest.raises(UserError, match=r"no network.*--data\.path.*train-images-idx3-ubyte"):
        open_source(DataConfig(source="mnist"), 0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match=r"data\.source mnist needs its files"):
        open_source(DataConfig(source="mnist"), 0, download=False)


def test_download_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(root: str, **_: object) -> None:
        calls.append(root)
        write_idx(Path(root) / "MNIST/raw")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "MNIST", download)
    data = DataConfig(source="mnist")
    for _ in range(2):
        assert len(read(data, "test")) == 10
    assert len(calls) == 1


@pytest.mark.skipif(not MNIST.is_dir(), reason="no MNIST at NPDRAW_TEST_MNIST")
def test_real_mnist_is_as_torchvision_reads_it() -> None:
    data = DataConfig(source="mnist", path=str(MNIST))
    reference = datasets.MNIST(str(MNIST), train=False, download=False)
    rows = read(data, "test")
    np.testing.assert_array_equal(rows.images[:, 0], reference.data.numpy())
    np.testing.assert_array_equal(rows.labels, reference.targets.numpy())


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_real_fashion_mnist_of_debian() -> None:
    source = open_source(DataConfig(source="fashion_mnist", path=str(FASHION)), 0)
    assert [source.count(split) for split in SPLITS] == [54_000, 6_000, 10_000]
    rows = source.shards("valid")[0].read()
    assert len(rows) == 2048
    assert rows.labels is not None
    assert np.bincount(rows.labels).min() > 150


def save_image(path: Path, array: NDArray[np.uint8], mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def test_omniglot_is_inverted_and_split_in_the_usual_proportion(tmp_path: Path) -> None:
    for part, alphabets in (("background", ("Greek", "Latin")), ("evaluation", ("Tengwar",))):
        for alphabet in alphabets:
            for character in (1, 2):
                for drawer in range(1, 11):
                    page = np.full((105, 105), 255, np.uint8)
                    page[20:80, 45:55] = 0  # black ink on white
                    name = (
                        f"images_{part}/{alphabet}/character{character:02d}/{character:04d}_{drawer:02d}.png"
                    )
                    save_image(tmp_path / "omniglot-py" / name, page, "1")
    data = DataConfig(source="omniglot", path=str(tmp_path))
    parts = {split: read(data, split) for split in SPLITS}
    assert len(parts["test"]) == 15  # 8,070 of 32,415
    assert len(parts["train"]) + len(parts["valid"]) == 45
    assert len({name for rows in parts.values() for name in rows.ids}) == 60
    assert {int(label) for rows in parts.values() for label in rows.labels} == set(range(6))  # type: ignore[union-attr]
    image = parts["train"].images[0, 0]
    assert image.shape == (28, 28)
    assert image[0].max() == 0
    assert image[14, 13] > 200
    assert read(data, "test", seed=9).ids == parts["test"].ids


def write_cifar(root: Path, rows: int = 6) -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    root.mkdir(parents=True)
    made = []
    for name in arrays.CIFAR_BATCHES:
        pixels = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [int(i) for i in range(rows)], "batch_label": name}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
        made.append(pixels)
    return np.concatenate(made)


@pytest.mark.parametrize("inner", ["cifar-10-batches-py", ""])
def test_cifar(tmp_path: Path, inner: str) -> None:
    pixels = write_cifar(tmp_path / "set" / inner)
    data = DataConfig(source="cifar10", path=str(tmp_path / "set"), binarize="none", shard_rows=10)
    train, valid, test = (read(data, split) for split in SPLITS)
    assert (len(train), len(valid), len(test)) == (27, 3, 6)
    np.testing.assert_array_equal(test.images.reshape(6, -1), pixels[30:])
    for name, image, label in zip(train.ids, train.images, train.labels, strict=True):  # type: ignore[arg-type]
        batch, row = name.removeprefix("cifar10-data_batch_").split("-")
        np.testing.assert_array_equal(image.ravel(), pixels[(int(batch) - 1) * 6 + int(row)])
        assert label == int(row)


class _Harm:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch harmed",)


def test_cifar_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "set")
    (tmp_path / "set" / "data_batch_2").write_bytes(pickle.dumps({"data": _Harm(), "labels": []}))
    with pytest.raises(UserError, match="data_batch_2"):
        open_source(DataConfig(source="cifar10", path=str(tmp_path / "set"), binarize="none"), 0)
    assert not (tmp_path / "harmed").exists()


def test_celeba_is_cropped_and_keeps_its_partition(tmp_path: Path) -> None:
    folder = tmp_path / "celeba"
    lines = []
    for number in range(1, 9):
        photo = np.zeros((218, 178, 3), np.uint8)
        photo[35:183, 15:163] = (number * 20, 100, 200)  # the centre square of 148
        save_image(folder / "img_align_celeba" / f"{number:06d}.png", photo)
        lines.append(f"{number:06d}.png {0 if number < 6 else 1 if number < 8 else 2}")
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    (folder / "img_align_celeba" / "000003.png").unlink()
    (folder / "img_align_celeba" / "000004.png").write_bytes(b"no picture")
    data = DataConfig(source="celeba", path=str(tmp_path), binarize="none")
    train, valid, test = (read(data, split) for split in SPLITS)
    assert sorted(train.ids) == ["000001.png", "000002.png", "000005.png"]
    assert sorted(reject.id for reject in train.rejects) == ["000003.png", "000004.png"]
    assert (valid.ids, test.ids) == (["000006.png", "000007.png"], ["000008.png"])
    assert test.images.shape == (1, 3, 64, 64)
    assert (test.images[0].reshape(3, -1) == np.array([[160], [100], [200]])).all()
    (folder / "list_eval_partition.txt").write_text("000001.png train\n")
    with pytest.raises(UserError, match="line 1"):
        open_source(data, 0)
