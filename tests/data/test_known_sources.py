"""The readers of known data sets, on tiny sets in the real on-disk layouts."""

import gzip
import os
import pickle
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.listing import stamp_of
from npdraw_dist.data.readers import arrays, files
from npdraw_dist.data.readers.known import kept
from npdraw_dist.data.shards import open_source
from npdraw_dist.system.errors import UserError
from tests.helpers.rows import read_all


def inputs(data: DataConfig) -> list[str]:
    """The files that the stamp of the source is made of."""
    found: list[str] = []

    def noted(table: pa.Table) -> str:
        found.extend(table["path"].to_pylist())
        assert all(table["size"].to_pylist())
        return stamp_of(table)

    with mock.patch.object(arrays, "stamp_of", noted), mock.patch.object(files, "stamp_of", noted):
        open_source(data, 0)
    return found


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, zipped: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for prefix, count in (("train", 40), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = gzip.compress(idx(array)) if zipped else idx(array)
            (folder / (f"{stem}.gz" if zipped else stem)).write_bytes(content)
        made[prefix] = (images, labels)
    return made


def test_digits_are_scikit_learns_enlarged_and_stratified() -> None:
    data = DataConfig()
    source = open_source(data, 0)
    parts = read_all(data)
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


def test_digits_are_sharded_and_nested() -> None:
    few, many, whole = (read_all(DataConfig(fraction=share)) for share in (0.01, 0.1, 1.0))
    assert set(few["train"].ids) < set(many["train"].ids) < set(whole["train"].ids)
    for part, share in ((few, 0.01), (many, 0.1)):
        assert len(part["train"]) == round(share * len(whole["train"]))
        assert part["test"].ids == whole["test"].ids
    shards = open_source(DataConfig(shard_rows=500), 0).shards("train")
    again = pickle.loads(pickle.dumps(shards))
    assert [len(shard.read()) for shard in again] == [500, 500, 438]
    assert read_all(DataConfig(), seed=1)["valid"].ids != whole["valid"].ids


@pytest.mark.parametrize(
    ("source", "inner", "zipped"), [("mnist", "MNIST/raw", False), ("fashion_mnist", "", True)]
)
def test_idx_files(tmp_path: Path, source: Any, inner: str, zipped: bool) -> None:
    made = write_idx(tmp_path / inner, zipped)
    data = DataConfig(source=source, path=str(tmp_path), shard_rows=16)
    names = sorted(path.name for path in (tmp_path / inner).iterdir())
    (tmp_path / inner / "notes.txt").write_text("no data")
    assert inputs(data) == names
    # The layout is no content.
    flat = data.model_copy(update={"path": str(tmp_path / inner)})
    assert open_source(flat, 0).stamp == open_source(data, 0).stamp
    train, valid, test = read_all(data).values()
    assert (len(train), len(valid), len(test)) == (36, 4, 10)
    assert not set(train.ids) & set(valid.ids)
    for rows in (train, valid):
        index = [int(name.removeprefix(f"{source}-train-")) for name in rows.ids]
        np.testing.assert_array_equal(rows.images[:, 0], made["train"][0][index])
        np.testing.assert_array_equal(rows.labels, made["train"][1][index])
    assert test.ids[3] == f"{source}-test-000003"
    np.testing.assert_array_equal(test.images[:, 0], made["t10k"][0])
    if source == "mnist":  # the layout is that of torchvision
        known = datasets.MNIST(str(tmp_path), train=False, download=False)
        np.testing.assert_array_equal(test.images[:, 0], known.data.numpy())
        np.testing.assert_array_equal(test.labels, known.targets.numpy())


def test_a_download_is_made_once_and_one_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(root: str, **_: object) -> None:
        calls.append(root)
        write_idx(Path(root) / "MNIST/raw")
        if len(calls) == 1:
            raise RuntimeError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "MNIST", download)
    data = DataConfig(source="mnist")
    with pytest.raises(UserError, match=r"no network.*--data\.path"):
        open_source(data, 0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="mnist needs its files"):
        open_source(data, 0, download=False)
    for _ in range(2):
        assert len(read_all(data)["test"]) == 10
    assert len(calls) == 2


def save_image(path: Path, array: NDArray[np.uint8], mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def test_omniglot_is_inverted_and_split_in_the_usual_proportion(tmp_path: Path) -> None:
    page = np.full((105, 105), 255, np.uint8)
    page[20:80, 45:55] = 0  # black ink on white
    for alphabet in ("background/Greek", "background/Latin", "evaluation/Tengwar"):
        for character in (1, 2):
            for drawer in range(1, 11):
                name = f"images_{alphabet}/character{character:02d}/{drawer:02d}.png"
                save_image(tmp_path / "omniglot-py" / name, page, "1")
    data = DataConfig(source="omniglot", path=str(tmp_path))
    pages = (tmp_path / "omniglot-py").rglob("*.png")
    assert inputs(data) == sorted(path.relative_to(tmp_path / "omniglot-py").as_posix() for path in pages)
    parts = read_all(data)
    assert len(parts["test"]) == 15  # 8,070 of 32,415
    assert len(parts["train"]) + len(parts["valid"]) == 45
    assert len({name for rows in parts.values() for name in rows.ids}) == 60
    assert {int(label) for rows in parts.values() for label in rows.known_labels()} == set(range(6))
    image = parts["train"].images[0, 0]
    assert image.shape == (28, 28)
    assert image[0].max() == 0
    assert image[14, 13] > 200
    assert read_all(data, seed=9)["test"].ids == parts["test"].ids


def write_cifar(root: Path) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 6, 3072), dtype=np.uint8)
    root.mkdir(parents=True)
    for name, own in zip(arrays.CIFAR_BATCHES, pixels, strict=True):
        batch = {"data": own, "labels": list(range(6)), "batch_label": name}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    return pixels


@pytest.mark.parametrize("inner", ["cifar-10-batches-py", ""])
def test_cifar(tmp_path: Path, inner: str) -> None:
    pixels = write_cifar(tmp_path / "set" / inner)
    data = DataConfig(source="cifar10", path=str(tmp_path / "set"), binarize="none", shard_rows=10)
    (tmp_path / "set" / inner / "batches.meta").write_bytes(b"names")
    assert inputs(data) == list(arrays.CIFAR_BATCHES)
    train, valid, test = read_all(data).values()
    assert (len(train), len(valid), len(test)) == (27, 3, 6)
    np.testing.assert_array_equal(test.images.reshape(6, -1), pixels[5])
    for name, image, label in zip(train.ids, train.images, train.known_labels(), strict=True):
        batch, row = name.removeprefix("cifar10-data_batch_").split("-")
        np.testing.assert_array_equal(image.ravel(), pixels[int(batch) - 1, int(row)])
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
    present = sorted(path.name for path in (folder / "img_align_celeba").iterdir())
    assert inputs(data) == [*(f"img_align_celeba/{name}" for name in present), "list_eval_partition.txt"]
    train, valid, test = read_all(data).values()
    assert sorted(train.ids) == ["000001.png", "000002.png", "000005.png"]
    assert sorted(reject.id for reject in train.rejects) == ["000003.png", "000004.png"]
    assert (valid.ids, test.ids) == (["000006.png", "000007.png"], ["000008.png"])
    assert test.images.shape == (1, 3, 64, 64)
    assert (test.images[0].reshape(3, -1) == np.array([[160], [100], [200]])).all()
    (folder / "list_eval_partition.txt").write_text("000001.png train\n")
    with pytest.raises(UserError, match="line 1"):
        open_source(data, 0)


def test_threads_make_it_once() -> None:
    begun: list[int] = []
    waiting = threading.Event()

    @kept(maxsize=2)
    def square(number: int) -> int:
        begun.append(number)
        waiting.wait(0.2)  # others call meanwhile
        return number * number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, [3] * 4)) == [9] * 4
    assert begun == [3]
    waiting.set()
    for number in (1, 3, 2, 3, 1):  # the last ones are kept
        square(number)
    assert begun == [3, 1, 2, 1]
