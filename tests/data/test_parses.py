"""Parses on disk: what is written is read back, by us, by plain pyarrow and by Ray Data."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.parses import COLUMNS, read_parses, to_columns, write_parses

N, T = 2500, 6
LOCAL = fs.LocalFileSystem()


def sample(count: int = N, parts: int = 50) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "ids": [f"x-{i}" for i in range(count)],
        "images": torch.randint(0, 256, (count, 3, 4, 5), generator=generator).to(torch.uint8).numpy(),
        "labels": np.arange(count, dtype=np.int64) % 10,
        "z": PartSequence(
            torch.rand(count, T, generator=generator) < 0.5,
            torch.randint(0, 36, (count, T), generator=generator),
            torch.randint(0, parts, (count, T), generator=generator),
        ),
        "squared_error": np.linspace(0, 1, count, dtype=np.float32),
    }


def equal(a: PartSequence, b: PartSequence) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("whether", "where", "what"))


@pytest.mark.parametrize("parts", [50, 100_000])
def test_round_trip(tmp_path: Path, parts: int) -> None:
    path, made = str(tmp_path / "train" / "a.parquet"), sample(parts=parts)
    write_parses(path, LOCAL, **made)
    found = read_parses(path, LOCAL)
    assert tuple(found) == COLUMNS
    images, z = to_columns(found)
    np.testing.assert_array_equal(images, made["images"])
    assert equal(z, made["z"].canonical())
    assert found["id"].tolist() == made["ids"]
    np.testing.assert_array_equal(found["label"], made["labels"])
    np.testing.assert_array_equal(found["squared_error"], made["squared_error"])
    assert found["what"].dtype == (np.int16 if parts < 2**15 else np.int32)
    assert [file.name for file in (tmp_path / "train").iterdir()] == ["a.parquet"]
    assert pq.ParquetFile(path).metadata.num_row_groups == 3


def test_plain_pyarrow_reads_it(tmp_path: Path) -> None:
    path, made = str(tmp_path / "a.parquet"), sample(7)
    write_parses(path, LOCAL, **made)
    table = pq.read_table(path)
    assert table["whether"].to_pylist() == made["z"].whether.tolist()
    assert table["where"].to_pylist() == made["z"].canonical().where.tolist()
    np.testing.assert_array_equal(table["image"].combine_chunks().to_numpy_ndarray(), made["images"])
    images, z = to_columns(table.slice(2, 3))
    np.testing.assert_array_equal(images, made["images"][2:5])
    assert equal(z, made["z"].canonical()[2:5])


def test_no_labels_and_no_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    write_parses(path, LOCAL, **{**sample(3), "labels": None})
    assert read_parses(path, LOCAL)["label"].tolist() == [-1, -1, -1]
    write_parses(path, LOCAL, **sample(0))
    images, z = to_columns(read_parses(path, LOCAL))
    assert images.shape == (0, 3, 4, 5)
    assert z.whether.shape == (0, T)


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = str(tmp_path / "a.parquet"), sample(3)
    write_parses(path, LOCAL, **made)

    def fails(table: pa.Table, stream: Any, **_: object) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fails)
    with pytest.raises(OSError, match="disk full"):
        write_parses(path, LOCAL, **sample(2))
    assert len(read_parses(path, LOCAL)["id"]) == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parses(str(path), LOCAL, **sample(20))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"a\.parquet is no readable shard"):
        read_parses(str(path), LOCAL)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match="lacks the columns image, label"):
        read_parses(str(path), LOCAL)


@pytest.mark.ray
def test_ray_data_reads_it(tmp_path: Path) -> None:
    from npdraw_dist.training.launch import start_ray

    made = sample()
    for number, rows in enumerate((slice(0, 1000), slice(1000, N))):
        part = {name: value[rows] for name, value in made.items()}
        write_parses(str(tmp_path / f"{number}.parquet"), LOCAL, **part)
    start_ray(ScaleConfig())
    import ray

    dataset = ray.data.read_parquet(str(tmp_path))
    found: dict[str, tuple[Any, Any]] = {}
    for batch in dataset.iter_batches(batch_size=300, batch_format="numpy"):
        images, z = to_columns(batch)
        assert images.dtype == np.uint8
        for i, name in enumerate(batch["id"]):
            found[name] = (images[i], z[i : i + 1])
    assert sorted(found) == sorted(made["ids"])
    for i, name in enumerate(made["ids"]):
        np.testing.assert_array_equal(found[name][0], made["images"][i])
        assert equal(found[name][1], made["z"].canonical()[i : i + 1])
