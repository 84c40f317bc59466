"""Parses on disk: what is written is read back, by us, by plain pyarrow and by Ray Data."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data.parses import to_batch, to_parquet
from npdraw_dist.data.rows import Rows
from tests.helpers.rows import open_parses

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


def write(path: str, made: dict[str, Any]) -> None:
    rows = Rows(made["ids"], made["images"], made["labels"])
    write_bytes(LOCAL, path, to_parquet(rows, made["z"], made["squared_error"]))


def equal(a: PartSequence, b: PartSequence) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("whether", "where", "what"))


@pytest.mark.parametrize("parts", [50, 100_000])
def test_round_trip(tmp_path: Path, parts: int) -> None:
    path, made = str(tmp_path / "train" / "a.parquet"), sample(parts=parts)
    write(path, made)
    found = open_parses(LOCAL, str(tmp_path)).at(np.arange(N))
    np.testing.assert_array_equal(found.images.numpy(), made["images"])
    assert equal(found.z, made["z"].canonical())
    # A batch keeps the types of the disk.
    assert found.where.dtype == torch.int16
    assert found.what.dtype == (torch.int16 if parts < 2**15 else torch.int32)
    table = pq.read_table(path)
    assert table.column_names == ["id", "image", "label", "whether", "where", "what", "squared_error"]
    assert table["id"].to_pylist() == made["ids"]
    np.testing.assert_array_equal(table["label"].to_numpy(), made["labels"])
    np.testing.assert_array_equal(table["squared_error"].to_numpy(), made["squared_error"])
    assert [file.name for file in (tmp_path / "train").iterdir()] == ["a.parquet"]
    assert pq.ParquetFile(path).metadata.num_row_groups == 10


def test_shards_of_different_types_are_read_together(tmp_path: Path) -> None:
    few, many = sample(5, parts=50), sample(5, parts=100_000)
    for name, made in (("a", few), ("b", many)):
        write(str(tmp_path / f"{name}.parquet"), made)
    found = open_parses(LOCAL, str(tmp_path)).at(np.arange(10))
    assert equal(found.z, PartSequence.cat([few["z"], many["z"]]).canonical())


def test_plain_pyarrow_reads_it(tmp_path: Path) -> None:
    path, made = str(tmp_path / "a.parquet"), sample(7)
    write(path, made)
    table = pq.read_table(path)
    assert table["whether"].to_pylist() == made["z"].whether.tolist()
    assert table["where"].to_pylist() == made["z"].canonical().where.tolist()
    np.testing.assert_array_equal(table["image"].combine_chunks().to_numpy_ndarray(), made["images"])
    batch = to_batch(table.slice(2, 3))
    np.testing.assert_array_equal(batch.images.numpy(), made["images"][2:5])
    assert equal(batch.z, made["z"].canonical()[2:5])


def test_no_labels_and_no_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    write(path, {**sample(3), "labels": None})
    assert pq.read_table(path)["label"].to_pylist() == [-1, -1, -1]
    write(path, sample(0))
    batch = to_batch(pq.read_table(path))
    assert batch.images.shape == (0, 3, 4, 5)
    assert batch.z.whether.shape == (0, T)


def test_shards_without_steps_have_sequences_of_none(tmp_path: Path) -> None:
    made = sample(3)
    write(str(tmp_path / "a.parquet"), {**made, "z": None})
    batch = open_parses(LOCAL, str(tmp_path)).in_id_order()
    np.testing.assert_array_equal(batch.images.numpy(), made["images"])
    assert batch.z.whether.shape == (3, 0)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(str(path), sample(20))
    parses = open_parses(LOCAL, str(tmp_path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"a\.parquet is no readable shard .* run the stage `parse` again"):
        parses.at(np.arange(20))


@pytest.mark.ray
def test_ray_data_reads_it(tmp_path: Path) -> None:
    from npdraw_dist.training.launch import start_ray

    made = sample()
    for number, rows in enumerate((slice(0, 1000), slice(1000, N))):
        part = {name: value[rows] for name, value in made.items()}
        write(str(tmp_path / f"{number}.parquet"), part)
    start_ray(ScaleConfig())
    import ray

    dataset = ray.data.read_parquet(str(tmp_path))
    found: dict[str, tuple[Any, Any]] = {}
    tables: Any = dataset.iter_batches(batch_size=300, batch_format="pyarrow")
    for table in tables:
        batch = to_batch(table)
        for i, name in enumerate(table["id"].to_pylist()):
            found[name] = (batch.images[i].numpy(), batch.z[i : i + 1])
    assert sorted(found) == sorted(made["ids"])
    for i, name in enumerate(made["ids"]):
        np.testing.assert_array_equal(found[name][0], made["images"][i])
        assert equal(found[name][1], made["z"].canonical()[i : i + 1])
