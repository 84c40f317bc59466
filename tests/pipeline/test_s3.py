"""Whole commands with their data, runs and models on S3."""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from PIL import Image
from ray.train import TrainingFailedError

from npdraw_dist import prepare, sample, train
from npdraw_dist.config.schema import DataConfig, Experiment, ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import is_lease
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.storage import list_files, open_filesystem, read_bytes
from npdraw_dist.data import prepare as preparing
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import launch
from npdraw_dist.training.metrics_log import read_metrics
from tests.helpers.rows import concat
from tests.helpers.runs import TINY, Refused
from tests.helpers.s3_server import SECRET, s3_server

DIGITS = DataConfig(shard_rows=300, fraction=0.4)
MODEL = ("config.json", "model.safetensors")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture(scope="module")
def s3_ray(bucket: str, request: pytest.FixtureRequest) -> None:
    """The local Ray of all stages, started anew where its workers would not know the server."""
    running = ray.is_initialized()
    request.getfixturevalue("local_ray")
    if running:
        ray.shutdown()
        launch.start_ray(ScaleConfig(), object_store_mb=128)


def files(uri: str) -> dict[str, bytes]:
    """Path below `uri` -> content, without the lease."""
    filesystem, root = open_filesystem(uri)
    return {
        path.removeprefix(f"{root}/"): read_bytes(filesystem, path)
        for path, _ in list_files(filesystem, root)
        if not is_lease(path)
    }


def rows(data: DataConfig, seed: int = 0) -> dict[str, Rows]:
    source = open_source(data, seed)
    return {split: concat([shard.read() for shard in source.shards(split)]) for split in SPLITS}


def killed(images: int, images_per_s: float) -> None:
    """Ends `prepare` once it has written a shard."""
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_prepared_set_resumes_and_reads_back(bucket: str, s3_ray: None, form: Any) -> None:
    out = f"{bucket}/shards/{form}"
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(DIGITS, 0, out, form, killed)
    suffix = preparing.ENCODERS[form][1]
    filesystem, root = open_filesystem(out)
    assert "manifest.json" not in files(out)
    for name in ("train/train-00000", "valid/valid-00000"):  # whichever of them the killed run wrote
        if filesystem.get_file_info(path := f"{root}/{name}.{suffix}").is_file:
            filesystem.delete_file(path)
    flags = ["--data.source", "digits", "--data.shard_rows", "300", "--data.fraction", "0.4"]
    prepare.main([*flags, "--out", out, "--format", form])
    after = files(out)
    manifest = json.loads(after["manifest.json"])
    assert {item["file"] for item in manifest["files"]} == {n for n in after if n.endswith(f".{suffix}")}
    assert not [name for name in after if name.endswith(".part")]
    prepare.main([*flags, "--out", out, "--format", form])
    assert files(out) == after

    original = rows(DIGITS)
    for split, back in rows(DataConfig(source=form, path=out, image_size=28, channels=1), 5).items():
        assert back.ids == original[split].ids
        np.testing.assert_array_equal(back.images, original[split].images)
        np.testing.assert_array_equal(back.labels, original[split].labels)
    with pytest.raises(UserError, match="another source or config"):
        preparing.prepare(DIGITS, 1, out, form)


def test_tars_by_a_pattern_of_uris(bucket: str, tmp_path: Path) -> None:
    """A brace pattern of URIs, whose paths are read one by one."""
    Image.new("L", (8, 8), 9).save(tmp_path / "a.png")
    filesystem, root = open_filesystem(f"{bucket}/tars")
    for number in range(2):
        (tmp_path / "a.png").rename(tmp_path / f"{number}.png")
        with (
            filesystem.open_output_stream(f"{root}/{number}.tar") as stream,
            tarfile.open(fileobj=stream, mode="w|") as tar,
        ):
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
        (tmp_path / f"{number}.png").rename(tmp_path / "a.png")
    data = DataConfig(source="webdataset", path=f"{bucket}/tars/{{0..1}}.tar", image_size=8, channels=1)
    found = rows(data)
    assert sorted(name for part in found.values() for name in part.ids) == ["0", "1"]


def breaks(make: Callable[[Experiment, Any], Objective]) -> Callable[[Experiment, Any], Objective]:
    """`make`, whose objective raises in its third step: after the first checkpoint."""

    def make_objective(experiment: Experiment, bank: Any) -> Objective:
        objective = make(experiment, bank)
        forward = objective.forward

        def failing(batch: Any, progress: float, generator: Any) -> Any:
            if progress >= 0.75:
                raise RuntimeError("the machine is taken away")
            return forward(batch, progress, generator)

        objective.forward = failing  # type: ignore[method-assign, assignment]
        return objective

    return make_objective


@pytest.fixture(scope="module")
def interrupted(bucket: str, s3_ray: None) -> str:
    """The URI of a run whose prior broke after its first checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "make_objective", breaks(prior.make_objective))
        with pytest.raises(TrainingFailedError):
            train.main(["--storage", f"{bucket}/runs", "--name", "tiny", *TINY, "--scale.max_failures", "0"])
    return f"{bucket}/runs/tiny"


@pytest.fixture(scope="module")
def resumed(interrupted: str, bucket: str) -> str:
    """The same, its prior trained to the end."""
    command = ["--storage", f"{bucket}/runs", "--name", "tiny", *TINY]
    train.main([*command, "--stages", "bank,parse,prior"])
    return interrupted


@pytest.fixture(scope="module")
def run(resumed: str, bucket: str) -> str:
    """The same, finished by the command for all stages."""
    train.main(["--storage", f"{bucket}/runs", "--name", "tiny", *TINY])
    return resumed


@pytest.mark.slow
@pytest.mark.ray
def test_workers_have_the_credentials(s3_ray: None) -> None:
    @ray.remote(num_cpus=0)
    def look() -> str | None:
        return os.environ.get("AWS_SECRET_ACCESS_KEY")

    assert ray.get(look.remote()) == SECRET


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupted_training_leaves_its_checkpoint(interrupted: str) -> None:
    found = {name for name in files(interrupted) if name.startswith(("prior/", "vae/", "model/"))}
    assert "prior/manifest.json" not in found
    filesystem, root = open_filesystem(interrupted)
    assert [record["images_seen"] for record in read_metrics(filesystem, f"{root}/prior")] == [256]
    assert [n for n in found if n.endswith(".safetensors")] == [
        "prior/checkpoint_000000002/state.safetensors"
    ]


@pytest.mark.slow
@pytest.mark.ray
def test_training_goes_on_from_its_checkpoint(resumed: str) -> None:
    found = files(resumed)
    manifest = json.loads(found["prior/manifest.json"])
    assert manifest["images"] == 512  # of both commands
    assert manifest["core_seconds"] > 0
    assert not [name for name in found if name.startswith(("vae/", "model/"))]


@pytest.mark.slow
@pytest.mark.ray
def test_the_run_is_whole(run: str) -> None:
    found = files(run)
    wanted = {"config.yaml", "bank/bank.safetensors", "bank/bank.png", "parses/preview.png"}
    wanted |= {f"{stage}/manifest.json" for stage in ("bank", "parses", "prior", "vae")}
    wanted |= {f"{stage}/metrics.jsonl" for stage in ("prior", "vae")}
    wanted |= {"metrics.json", "samples.png", "generation.gif", "curves.png"}
    wanted |= {f"model/{name}" for name in MODEL}
    assert wanted <= {name for name, content in found.items() if content}
    assert not [name for name in found if name.endswith((".part", ".writable"))]
    assert not [name for name in found if "/metrics/" in name]
    for stage in ("prior", "vae"):
        assert len([n for n in found if n.startswith(f"{stage}/") and n.endswith("state.safetensors")]) == 2
        assert len([name for name in found if name.startswith(f"{stage}/events.out.tfevents")]) >= 2
        records = [json.loads(line) for line in found[f"{stage}/metrics.jsonl"].splitlines()]
        assert [record["images_seen"] for record in records] == [256, 512]


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupted_run_on_s3_is_the_undisturbed_one_here(run: str, tiny_run: Path) -> None:
    found = files(run)
    for name in ("bank/bank.safetensors", "model/model.safetensors"):
        assert found[name] == (tiny_run / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_command_again_does_nothing(
    run: str, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a finished run needs no Ray")

    monkeypatch.setattr(launch, "start_ray", fail)
    before = files(run)
    capsys.readouterr()
    train.main(["--storage", f"{bucket}/runs", "--name", "tiny", *TINY])
    assert capsys.readouterr().out.startswith("all done: ")
    assert files(run) == before


@pytest.mark.slow
@pytest.mark.ray
def test_another_config_is_refused_by_its_uri(run: str, bucket: str, refused: Refused) -> None:
    line = refused(train.main, "--storage", f"{bucket}/runs", "--name", "tiny", *TINY, "--prior.width", "32")
    assert f"run {run} has another config (prior.width: 16 -> 32)" in line


@pytest.mark.slow
@pytest.mark.ray
def test_no_secret_is_stored(run: str) -> None:
    found = files(run)
    assert yaml.safe_load(found["config.yaml"])["prior"]["width"] == 16
    assert not [name for name, content in found.items() if SECRET.encode() in content]


@pytest.mark.slow
@pytest.mark.ray
def test_samples_of_a_model_at_a_uri(run: str, tmp_path: Path) -> None:
    filesystem, root = open_filesystem(f"{run}/model")
    (tmp_path / "model").mkdir()
    for name in MODEL:
        (tmp_path / "model" / name).write_bytes(read_bytes(filesystem, f"{root}/{name}"))
    for model, out in ((f"{run}/model", "a"), (str(tmp_path / "model"), "b")):
        sample.main(["--model", model, "--n", "4", "--out", str(tmp_path / out)])
    assert (tmp_path / "a" / "samples.png").read_bytes() == (tmp_path / "b" / "samples.png").read_bytes()


def test_mistakes_in_a_uri_are_told_in_one_line(bucket: str, refused: Refused, tmp_path: Path) -> None:
    line = refused(train.main, "--storage", "s3://nobody/runs", *TINY)
    assert "cannot open s3://nobody/runs: there is no bucket nobody" in line
    data = ["--data.source", "parquet", "--data.image_size", "28", "--data.channels", "1"]
    line = refused(prepare.main, *data, "--data.path", "s3://nobody/x", "--out", f"{bucket}/out")
    assert "cannot open s3://nobody/x: there is no bucket nobody" in line
    line = refused(sample.main, "--model", f"{bucket}/no/model", "--out", str(tmp_path))
    assert f"--model {bucket}/no/model is no model folder" in line
    secret = f"s3://key:{SECRET}@bucket/runs"
    assert SECRET not in refused(train.main, "--storage", secret, *TINY)


def test_a_run_folder_on_s3(bucket: str) -> None:
    store = Store.open(f"{bucket}/stores", "run")
    assert not store.is_local
    assert not store.has()
    store.make_folder()
    assert store.has()
    with store.writing("model") as path:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "config.json").write_text("{}")
    store.write_json({"k": 3}, "bank", "manifest.json")
    assert store.read_json("bank", "manifest.json") == {"k": 3}
    with store.reading("model") as path:
        assert (path / "deep" / "config.json").read_text() == "{}"
    store.remove("bank")
    assert not store.has("bank")
    assert store.has("model", "deep", "config.json")
    store.remove()
    assert not store.has()
    with pytest.raises(UserError, match=f"{bucket}/stores/run/bank/manifest.json is unreadable"):
        store.read_json("bank", "manifest.json")
