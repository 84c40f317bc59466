"""A run knows its data: what changes is refused by name, what is moved goes on, and nothing is mixed."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data import shard_writer
from npdraw_dist.data.shards import DataChanged
from npdraw_dist.pipeline import bank, inputs, parse, run
from npdraw_dist.pipeline.inputs import claim, find_run, read_digest
from npdraw_dist.pipeline.store import Store, fingerprint_of
from tests.helpers.image_files import SIDE, change_one, images, picture, put_back, touch
from tests.helpers.in_process import interfering, killed, map_here


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "map_items", map_here)
    monkeypatch.setattr(shard_writer, "map_items", map_here)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path / "data", 40)


def experiment(path: Path | str, **sections: Any) -> Experiment:
    settings: dict[str, Any] = {
        "data": {
            "source": "imagefolder",
            "path": str(path),
            "image_size": SIDE,
            "channels": 1,
            "shard_rows": 10,
        },
        "grid": {"patch": 4, "stride": 4},
        "bank": {"size": 3},
        "scale": {"use_gpu": False},
    }
    return with_changes(Experiment.model_validate(settings), sections)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


def start(asked: Experiment, store: Store) -> Experiment:
    """What `train` does before the first stage."""
    return claim(asked, store)[0]


def parsed(store: Store) -> dict[str, bytes]:
    """id -> image of all parses."""
    tables = [pq.read_table(path) for path in Path(store.path("parses")).rglob("*.parquet")]
    rows = [row for table in tables for row in zip(table["id"], table["image"].combine_chunks(), strict=True)]
    return {str(name): image.to_numpy().tobytes() for name, image in rows}


def test_a_run_records_its_data_and_its_stages_name_them(data: Path, store: Store) -> None:
    made = start(experiment(data), store)
    table = pq.read_table(store.path("inputs.parquet"))
    assert table.column_names == ["path", "size", "modified", "sha256"]
    assert table.num_rows == 40
    assert all(table["sha256"].to_pylist())
    digest = read_digest(store)
    assert digest == table.schema.metadata[b"digest"].decode()
    for stage, manifest in (("bank", bank.run(made, store)), ("parses", parse.run(made, store))):
        assert manifest["inputs"] == digest
        assert store.read_json(stage, "manifest.json")["inputs"] == digest


def test_the_same_data_resume_and_nothing_is_written(data: Path, store: Store) -> None:
    made = start(experiment(data), store)
    before = Path(store.path("inputs.parquet")).stat().st_mtime_ns
    assert start(experiment(data), store) == made
    assert Path(store.path("inputs.parquet")).stat().st_mtime_ns == before


@pytest.mark.parametrize("after", ["nothing", "bank", "parse"])
def test_changed_data_are_refused_by_name(data: Path, store: Store, after: str) -> None:
    made = start(experiment(data), store)
    if after != "nothing":
        bank.run(made, store)
    if after == "parse":
        parse.run(made, store)
    change_one(data)
    with pytest.raises(UserError) as error:
        start(experiment(data), store)
    assert str(error.value) == (
        f"the data of run {store.shown()} changed: class/3.bmp has another content; take another --name, or "
        "put the data back"
    )
    put_back(data)
    assert start(experiment(data), store) == made


def test_files_that_are_only_touched_resume_with_their_new_times(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(experiment(data), store)
    digest = read_digest(store)
    for path in (data / "class").iterdir():
        touch(path)
    start(experiment(data), store)
    assert read_digest(store) == digest
    # Now the times are recorded: no checksum is needed.
    monkeypatch.setattr("npdraw_dist.data.identity.sha256", None)
    start(experiment(data), store)


@pytest.mark.parametrize("how", ["a file is added", "a file is deleted", "a file is swapped", "all is other"])
def test_each_kind_of_change_is_refused(data: Path, store: Store, how: str) -> None:
    start(experiment(data), store)
    if how == "a file is added":
        picture(data / "class" / "new.bmp", 5)
    elif how == "a file is deleted":
        (data / "class" / "7.bmp").unlink()
    elif how == "a file is swapped":
        one, two = data / "class" / "1.bmp", data / "class" / "2.bmp"
        one.rename(data / "one")
        two.rename(one)
        (data / "one").rename(two)
        touch(one)
        touch(two)
    else:
        shutil.rmtree(data)
        images(data, 3)
    with pytest.raises(UserError, match=r"the data of run .*/run changed: class/"):
        start(experiment(data), store)


def test_moved_data_resume(data: Path, store: Store, tmp_path: Path) -> None:
    undisturbed = Store.open(str(tmp_path), "undisturbed")
    made = start(experiment(data), undisturbed)
    bank.run(made, undisturbed)
    parse.run(made, undisturbed)

    bank.run(start(experiment(data), store), store)
    shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(data)
    later = Store.open(str(tmp_path), "run")
    resumed = start(experiment(tmp_path / "moved"), later)
    assert resumed.data.path == str(data)
    assert fingerprint_of(resumed, "sample") == fingerprint_of(made, "sample")
    assert bank.run(resumed, later) == later.read_json("bank", "manifest.json")
    manifest = parse.run(resumed, later)
    assert manifest["inputs"] == read_digest(later) == read_digest(undisturbed)
    assert manifest["data"]["path"] == str(tmp_path / "moved")
    assert parsed(later) == parsed(undisturbed)
    assert run.unfinished(resumed, later, ["bank", "parse"]) == []
    found = find_run(later.path("model"))
    assert found is not None
    assert found[1]["data"]["path"] == str(tmp_path / "moved")


def test_other_data_elsewhere_are_refused(data: Path, store: Store, tmp_path: Path) -> None:
    start(experiment(data), store)
    shutil.copytree(data, tmp_path / "other")
    change_one(tmp_path / "other")
    with pytest.raises(UserError) as error:
        start(experiment(tmp_path / "other"), store)
    assert str(error.value).startswith(
        f"data.path {tmp_path}/other holds other data than those of run {store.shown()} ({data}): class/3.bmp"
    )
    with pytest.raises(UserError, match="missing or has no image"):
        start(experiment(tmp_path / "nowhere"), store)


def test_other_settings_are_refused_before_the_data_are_looked_at(data: Path, store: Store) -> None:
    start(experiment(data), store)
    change_one(data)
    with pytest.raises(UserError, match=r"another config \(bank.size: 3 -> 4\)"):
        start(experiment(data, bank={"size": 4}), store)


def test_data_that_are_gone_are_not_missed_after_the_parse(data: Path, store: Store, tmp_path: Path) -> None:
    made = start(experiment(data), store)
    bank.run(made, store)
    shutil.copytree(data, tmp_path / "kept")
    shutil.rmtree(data)
    with pytest.raises(UserError, match="missing or has no image"):
        start(experiment(data), store)
    shutil.copytree(tmp_path / "kept", data)
    parse.run(start(experiment(data), store), store)
    shutil.rmtree(data)
    assert start(experiment(data), store) == made


def test_data_that_change_while_the_bank_reads_them(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(experiment(data), store)
    monkeypatch.setattr(bank, "map_items", interfering(lambda: change_one(data), 1))
    with pytest.raises(DataChanged, match=r"while the stage bank read them: class/3\.bmp"):
        bank.run(made, store)
    assert not store.has("bank", "manifest.json")
    assert not store.has("bank", "bank.safetensors")


def test_data_that_change_while_the_parse_reads_them(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(experiment(data), store)
    bank.run(made, store)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", interfering(lambda: change_one(data), 1))
        with pytest.raises(DataChanged, match=r"while the stage parse read them: class/3\.bmp"):
            parse.run(made, store)
    assert not store.has("parses")
    put_back(data)
    parse.run(start(made, store), store)
    assert len(parsed(store)) == 40


def test_data_that_vanish_while_the_parse_reads_them(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(experiment(data), store)
    bank.run(made, store)
    monkeypatch.setattr(shard_writer, "map_items", interfering(lambda: shutil.rmtree(data), 1))
    with pytest.raises(DataChanged, match=r"while the stage parse read them: data\.path .* is missing"):
        parse.run(made, store)
    assert not store.has("parses")


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_a_killed_parse_resumes_but_not_over_a_change(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch, changed: bool, moved: bool
) -> None:
    made = start(experiment(data), store)
    bank.run(made, store)
    if moved:
        data = data.rename(data.with_name("moved"))
        start(experiment(data), store)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", interfering(killed, 2))
        with pytest.raises(KeyboardInterrupt):
            parse.run(made, store)
    done = sorted(Path(store.path("parses")).rglob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in done]
    assert len(done) == 2
    if changed:  # perhaps before the process was killed
        change_one(data)
        with pytest.raises(DataChanged, match=r"class/3\.bmp"):
            start(experiment(data), store)
        put_back(data)
    parse.run(start(experiment(data), store), store)
    assert len(parsed(store)) == 40
    assert ([path.stat().st_mtime_ns for path in done] == times) == (not changed)


def test_shards_of_other_data_are_not_taken(data: Path, store: Store) -> None:
    """Of a baseline, whose first stage is the parse: bad data may be mended before it has finished."""
    (data / "class" / "3.bmp").write_bytes(b"bad")
    made = start(experiment(data, model={"kind": "vae"}), store)
    with pytest.raises(UserError, match=r"1 of \d+ rows"), store.lease() as held:
        run.run_stages(made, store, ["parse"], held)
    assert not store.has("inputs.parquet")
    assert list(Path(store.path("parses")).rglob("*.parquet"))
    put_back(data)
    with store.lease() as held:
        run.run_stages(start(made, store), store, ["parse"], held)
    assert len(parsed(store)) == 40
    change_one(data)
    with pytest.raises(UserError, match=r"changed: class/3\.bmp"):
        start(made, store)


def test_the_digits_have_an_identity(store: Store) -> None:
    made = start(Experiment.model_validate({}), store)
    assert start(made, store) == made
    assert len(read_digest(store) or "") == 64
    record = inputs.read_inputs(store)
    assert record is not None
    (arrays,) = record.files
    assert (arrays.path, arrays.size, arrays.modified) == ("load_digits", 1797 * 65, None)


def test_a_store_without_times_is_compared_by_content(data: Path, store: Store) -> None:
    memory = "memory://identity"
    fs.copy_files(str(data), "identity", destination_filesystem=_memory(memory))
    made = start(experiment(memory), store)
    assert start(made, store) == made
    change_one(data)
    fs.copy_files(str(data), "identity", destination_filesystem=_memory(memory))
    with pytest.raises(UserError, match=r"class/3\.bmp has another content"):
        start(made, store)


def _memory(uri: str) -> fs.FileSystem:
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.core.url_to_fs(uri)[0]))
