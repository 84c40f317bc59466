"""Bad rows of the data are skipped, counted and listed; too many stop the stage `data` early."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from npdraw_dist import train
from npdraw_dist.data import ingest
from tests.helpers.in_process import killed
from tests.helpers.runs import IN_PROCESS, Refused
from tests.helpers.studio_models import png_of

SIDE = 10


def flags(source: str, data: Path, run: Path, **settings: object) -> list[str]:
    own = {"source": source, "path": data, "image_size": SIDE, "channels": 1, **settings}
    words = ["--storage", str(run.parent), "--name", run.name, "--stages", "data"]
    return [
        *words,
        *IN_PROCESS,
        *(word for key, value in own.items() for word in (f"--data.{key}", str(value))),
    ]


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8)


def rejects(run: Path) -> list[tuple[str, str]]:
    """(id, reason) of rejects.jsonl."""
    lines = [json.loads(line) for line in (run / "data" / "rejects.jsonl").read_text().splitlines()]
    return sorted((line["id"], line["reason"]) for line in lines)


def images_of(run: Path) -> dict[str, NDArray[np.uint8]]:
    """id -> image of all shards; no id twice."""
    found: dict[str, NDArray[np.uint8]] = {}
    for path in sorted((run / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        for name, image in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True):
            assert name not in found
            found[name] = np.frombuffer(image, np.uint8).reshape(SIDE, SIDE)
    return found


def manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "data" / "manifest.json").read_text()))


def test_the_first_of_two_images_of_an_id_stays_through_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(150)
    ids = [f"r{n:03d}" for n in range(150)]
    values = (images / 255).astype(np.float32)
    values[140, 0, 0] = np.nan
    for n in (70, 71, 130):
        ids[n] = ids[n - 70]
    ids[131] = ids[71]  # a third time
    data.mkdir()
    for start in (0, 50, 100):
        pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(values[start : start + 50, None].copy())
        pq.write_table(
            pa.table({"id": ids[start : start + 50], "image": pixels}), data / f"{start:03d}.parquet"
        )
    words = flags("parquet", data, run, max_bad_fraction=0.04)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "repeated_ids", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(words)
    train.main(words)  # takes up the removal of duplicates
    listed = [(ids[n], "duplicate id") for n in (70, 71, 131, 130)]
    listed = sorted([*listed, ("r140", "NaN or infinite values")])
    expected = {name: images[ids.index(name)] for name in ids if name != "r140"}
    first = images_of(run)
    assert set(first) == set(expected)
    assert all((first[name] == image).all() for name, image in expected.items())
    facts = manifest(run)
    assert (facts["images"], facts["rejected"]) == (145, 5)
    assert rejects(run) == listed
    # The first shards are written last.
    (run / "data" / "manifest.json").unlink()
    for sidecar in (run / "data" / ".done").glob("*-00000.json"):
        sidecar.unlink()
    train.main(words)
    again = images_of(run)
    assert all((again[name] == image).all() for name, image in expected.items())
    assert set(again) == set(expected)
    for key in ("images", "rejected", "splits", "digest", "digests"):
        assert manifest(run)[key] == facts[key]
    assert rejects(run) == listed


def test_the_stage_stops_before_it_has_read_all(tmp_path: Path, refused: Refused) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(400)
    data.mkdir()
    for n, image in enumerate(images):
        (data / f"{n:03d}.png").write_bytes(png_of(image) if n % 2 else b"bad")
    strict = flags("imagefolder", data, run, shard_rows=10)
    line = refused(train.main, *strict)
    bad, of, read = line.split(" rows of")[0].split()[-3:]
    assert of == "of"
    assert 4 <= int(bad) <= int(read) < 100
    listed = rejects(run)
    assert len(listed) >= int(bad)
    assert all(reason.startswith("unreadable image") for _, reason in listed)
    assert not (run / "data" / "manifest.json").exists()
    assert 0 < len(list((run / "data" / ".done").glob("*.json"))) < 40
    # What is done decides at once: nothing is read again. A higher limit goes on from it.
    before = {path: path.stat().st_mtime_ns for path in (run / "data").rglob("*.parquet")}
    assert "are bad" in refused(train.main, *strict)
    train.main(flags("imagefolder", data, run, shard_rows=10, max_bad_fraction=1))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (manifest(run)["images"], manifest(run)["rejected"]) == (200, 200)


def test_more_parts_than_patches_that_are_not_empty(tmp_path: Path, refused: Refused) -> None:
    words = ["--storage", str(tmp_path), "--name", "run", "--data.fraction", "0.05"]
    assert "bank.size is 2500" in refused(train.main, *words, "--bank.size", "2500")  # of 72 x 36 patches
    assert not (tmp_path / "run").exists()
