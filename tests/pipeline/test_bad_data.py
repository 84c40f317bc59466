"""Bad rows of the user's data in whole stages: skipped, counted and listed; too many stop a stage early."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist import train
from tests.helpers.mixed_folder import bomb
from tests.helpers.runs import Refused
from tests.helpers.tar_files import write_tar

SIDE = 10


def flags(source: str, data: Path, run: Path, **settings: object) -> list[str]:
    values = {
        "--storage": run.parent,
        "--name": run.name,
        "--stages": "bank,parse",
        "--data.source": source,
        "--data.path": data,
        "--data.image_size": SIDE,
        "--data.channels": 1,
        "--bank.size": 5,
        "--scale.num_workers": 0,  # without Ray
        **{f"--data.{key}": value for key, value in settings.items()},
    }
    return [str(word) for pair in values.items() for word in pair]


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(path: Path, ids: list[str], images: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images[:, None]))
    pq.write_table(pa.table({"id": ids, "image": pixels}), path)


def rejects(run: Path, folder: str = "parses") -> list[tuple[str, str]]:
    """(id, reason) of rejects.jsonl."""
    lines = [json.loads(line) for line in (run / folder / "rejects.jsonl").read_text().splitlines()]
    return sorted((line["id"], line["reason"]) for line in lines)


def parsed(run: Path) -> dict[str, NDArray[np.uint8]]:
    """id -> image of all parses; no id twice."""
    found: dict[str, NDArray[np.uint8]] = {}
    for path in sorted((run / "parses").rglob("*.parquet")):
        table = pq.read_table(path)
        images = table["image"].combine_chunks().to_numpy_ndarray()
        for name, image in zip(table["id"].to_pylist(), images, strict=True):
            assert name not in found
            found[name] = image[0]
    return found


def manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "parses" / "manifest.json").read_text()))


def test_single_bad_files_are_skipped_and_listed(tmp_path: Path) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(60)
    data.mkdir()
    for n, image in enumerate(images):
        (data / f"{n:02d}.png").write_bytes(png(image))
    (data / "broken.png").write_bytes(b"no picture")
    (data / "colour.png").write_bytes(png(np.stack([images[0]] * 3, -1)))
    (data / "bomb.png").write_bytes(bomb(20_000, 20_000))
    (data / "odd.png").write_bytes(png(np.full((17, 31), 200, np.uint8)))
    train.main(flags("imagefolder", data, run, shard_rows=20, max_bad_fraction=0.05))
    found = parsed(run)
    assert set(found) == {f"{n:02d}.png" for n in range(60)} | {"odd.png", "colour.png"}
    assert (found["odd.png"][4:6] == 200).all()
    assert (found["odd.png"][0] == 255).all()
    assert (found["colour.png"] == images[0]).all()
    assert [name for name, _ in rejects(run)] == ["bomb.png", "broken.png"]
    reasons = dict(rejects(run))
    assert reasons["broken.png"].startswith("unreadable image")
    assert "limit of 100,000,000 pixels" in reasons["bomb.png"]
    assert (manifest(run)["images"], manifest(run)["rejects"]) == (62, 2)


@pytest.mark.slow
def test_a_truncated_tar_and_an_id_in_two_tars(tmp_path: Path) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(80)
    for tar, start in enumerate((0, 40)):
        members = [(f"k{n:02d}.png", png(images[n])) for n in range(start, start + 40)]
        write_tar(data / f"{tar}.tar", members)
    with tarfile.open(data / "0.tar") as tar_file:
        cut = tar_file.getmember("k39.png").offset_data + 30
    (data / "0.tar").write_bytes((data / "0.tar").read_bytes()[:cut])
    write_tar(data / "2.tar", [(f"k{n:02d}.png", png(images[n])) for n in (3, 50)])
    train.main(flags("webdataset", data, run, max_bad_fraction=0.05))
    assert rejects(run) == [
        ("k03", "duplicate id"),
        ("k39", "truncated tar member"),
        ("k50", "duplicate id"),
    ]
    assert set(parsed(run)) == {f"k{n:02d}" for n in range(80)} - {"k39"}


def test_the_first_of_two_images_of_an_id_stays_through_a_resume(tmp_path: Path) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(150)
    ids = [f"r{n:03d}" for n in range(150)]
    values = (images / 255).astype(np.float32)
    values[140, 0, 0] = np.nan
    for n in (70, 71, 130):
        ids[n] = ids[n - 70]
    ids[131] = ids[71]  # a third time
    for part in range(3):
        rows = slice(part * 50, part * 50 + 50)
        write_table(data / f"{part}.parquet", ids[rows], values[rows])
    words = flags("parquet", data, run, max_bad_fraction=0.04)
    train.main(words)
    listed = [(ids[n], "duplicate id") for n in (70, 71, 131, 130)]
    listed = sorted([*listed, ("r140", "NaN or infinite values")])
    expected = {name: images[ids.index(name)] for name in ids if name != "r140"}
    first = parsed(run)
    assert set(first) == set(expected)
    assert all((first[name] == image).all() for name, image in expected.items())
    facts = manifest(run)
    assert (facts["images"], facts["rejects"]) == (145, 5)
    assert rejects(run) == listed
    # The first shards are parsed last.
    (run / "parses" / "manifest.json").unlink()
    for sidecar in (run / "parses" / ".done").glob("*-00000.json"):
        sidecar.unlink()
    train.main(words)
    again = parsed(run)
    assert all((again[name] == image).all() for name, image in expected.items())
    assert {key: manifest(run)[key] for key in ("images", "rejects", "splits", "mean_parts")} == {
        key: facts[key] for key in ("images", "rejects", "splits", "mean_parts")
    }
    assert manifest(run)["canvas_mse"] == pytest.approx(facts["canvas_mse"], rel=1e-12)
    assert rejects(run) == listed


@pytest.mark.slow
def test_a_killed_removal_of_duplicates_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(90)
    ids = [f"r{n:03d}" for n in range(90)]
    ids[60] = ids[0]
    for part in range(2):
        rows = slice(part * 45, part * 45 + 45)
        write_table(data / f"{part}.parquet", ids[rows], images[rows])
    words = flags("parquet", data, run, max_bad_fraction=0.03)
    from npdraw_dist.data import shard_writer

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "repeated_in", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(words)
    train.main(words)
    assert rejects(run) == [(ids[60], "duplicate id")]
    assert manifest(run)["images"] == len(parsed(run)) == 89


@pytest.mark.slow
def test_too_many_duplicates_stop_the_stage_and_a_higher_limit_goes_on(
    tmp_path: Path, refused: Refused
) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(100)
    ids = [f"r{n:03d}" for n in range(100)]
    ids[60:70] = ids[:10]
    for part in range(2):
        rows = slice(part * 50, part * 50 + 50)
        write_table(data / f"{part}.parquet", ids[rows], images[rows])
    line = refused(train.main, *flags("parquet", data, run))
    assert "10 of 100 rows of data.source parquet are bad" in line
    assert "see rejects.jsonl" in line
    assert rejects(run) == [(name, "duplicate id") for name in ids[:10]]
    before = {path: path.stat().st_mtime_ns for path in (run / "parses").rglob("*.parquet")}
    assert before
    train.main(flags("parquet", data, run, max_bad_fraction=0.1))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (manifest(run)["images"], manifest(run)["rejects"]) == (90, 10)


@pytest.mark.few(1)
@pytest.mark.parametrize("stage", ["bank", "parse"])
def test_a_stage_stops_before_it_has_read_all(stage: str, tmp_path: Path, refused: Refused) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(400)
    data.mkdir()
    for n, image in enumerate(images):
        (data / f"{n:03d}.png").write_bytes(png(image) if n % 2 else b"bad")
    words = flags("imagefolder", data, run, shard_rows=10)
    if stage == "parse":  # the limit is lower after the bank is made
        lenient = flags("imagefolder", data, run, shard_rows=10, max_bad_fraction=1)
        train.main([*lenient, "--stages", "bank"])
    line = refused(train.main, *words)
    read = int(line.split(" rows of")[0].split()[-1])
    bad = int(line.split(" of ")[0].split()[-1])
    assert 4 <= bad <= read < 100
    folder = {"bank": "bank", "parse": "parses"}[stage]
    listed = rejects(run, folder)
    assert len(listed) >= bad
    assert all(reason.startswith("unreadable image") for _, reason in listed)
    assert not (run / folder / "manifest.json").exists()
    if stage == "parse":
        done = list((run / "parses" / ".done").glob("*.json"))
        assert 0 < len(done) < 40
        # What is done decides at once: nothing is parsed again.
        assert "rows of data.source imagefolder are bad" in refused(train.main, *words)


@pytest.mark.slow
def test_a_tar_that_is_none_costs_no_other_shard(tmp_path: Path, refused: Refused) -> None:
    data, run, images = tmp_path / "in", tmp_path / "run", pictures(60)
    for tar, split in enumerate(("train", "train", "test")):
        members = [(f"k{n:02d}.png", png(images[n])) for n in range(tar * 20, tar * 20 + 20)]
        write_tar(data / split / f"{tar}.tar", members)
    last = data / "test" / "2.tar"  # the bank does not read it
    sound = last.read_bytes()
    last.write_bytes(b"no tar" * (len(sound) // 6) + b"x" * (len(sound) % 6))
    line = refused(train.main, *flags("webdataset", data, run))
    assert "2.tar is no readable tar" in line
    assert "what is written stays" in line
    assert set(parsed(run)) == {f"k{n:02d}" for n in range(40)}
    # Mended data are other data: the bank of this run is of those before.
    last.write_bytes(sound)
    line = refused(train.main, *flags("webdataset", data, run))
    assert f"the data of run {run} changed: test/2.tar has another content" in line
    train.main(flags("webdataset", data, tmp_path / "mended"))
    assert manifest(tmp_path / "mended")["images"] == 60
