"""Whole runs on S3 with Ray: one is interrupted; in another the server refuses or breaks requests."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.train import TrainingFailedError

from npdraw_dist import sample, train
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed import start
from npdraw_dist.pipeline import prior
from npdraw_dist.system.lease import is_lease
from npdraw_dist.system.storage import list_files, open_filesystem, read_bytes
from tests.helpers.in_process import stopped
from tests.helpers.runs import TINY, Refused
from tests.helpers.s3 import BUCKET, SECRET, Fault, Faults, flaky_proxy, s3_server
from tests.pipeline.test_faults import breaks

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUN = 4  # requests in a row that fail: more than the three attempts that pyarrow makes by default
EVERY = 40


@pytest.fixture(scope="module")
def faults(local_ray: None) -> Iterator[Faults]:
    """A server that makes faults on request, and a new Ray, whose workers know the server."""
    with s3_server(), flaky_proxy() as found:
        ray.shutdown()
        start.start_ray(ScaleConfig(), object_store_mb=128)
        yield found


@pytest.fixture
def bucket(faults: Faults) -> str:
    return f"s3://{BUCKET}"


def files(uri: str) -> dict[str, bytes]:
    """The content of each file below `uri`, by path, without the lease."""
    filesystem, root = open_filesystem(uri)
    return {
        path.removeprefix(f"{root}/"): read_bytes(filesystem, path)
        for path, _ in list_files(filesystem, root)
        if not is_lease(path)
    }


def images_seen(found: dict[str, bytes], stage: str) -> list[int]:
    return [json.loads(line)["images_seen"] for line in found[f"{stage}/metrics.jsonl"].splitlines()]


def test_an_interrupted_run_on_s3_equals_the_undisturbed_local_run(
    tiny_run: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    @ray.remote(num_cpus=0)
    def look() -> str | None:
        return os.environ.get("AWS_SECRET_ACCESS_KEY")

    assert ray.get(look.remote()) == SECRET
    command = ["--storage", f"{bucket}/runs", "--name", "tiny", *TINY]
    uri = f"{bucket}/runs/tiny"

    def broken() -> None:
        raise RuntimeError("the machine is taken away")

    with monkeypatch.context() as patch:
        patch.setattr(prior, "make_objective", breaks(tmp_path / "broke", 0.75, 0, broken))
        with pytest.raises(TrainingFailedError):
            train.main([*command, "--scale.max_failures", "0"])
    found = files(uri)
    assert images_seen(found, "prior") == [256]
    assert [name for name in found if name.startswith("prior/") and name.endswith(".safetensors")] == [
        "prior/checkpoint_000000002/state.safetensors"
    ]
    assert not [name for name in found if name.startswith(("prior/manifest", "vae/", "model/"))]

    train.main([*command, "--stages", "data,bank,parse,prior"])
    manifest = json.loads(files(uri)["prior/manifest.json"])
    assert manifest["images"] == 512  # of both commands
    assert manifest["core_seconds"] > 0
    train.main(command)
    found = files(uri)
    wanted = {"config.yaml", "bank/bank.png", "parses/preview.png", "metrics.json", "samples.png"}
    wanted |= {f"{stage}/manifest.json" for stage in ("data", "bank", "parses", "prior", "vae")}
    assert wanted <= {name for name, content in found.items() if content}
    assert not [name for name in found if name.endswith((".part", ".writable")) or "/metrics/" in name]
    assert not [name for name, content in found.items() if SECRET.encode() in content]
    for stage in ("prior", "vae"):
        assert len([n for n in found if n.startswith(f"{stage}/") and n.endswith("state.safetensors")]) == 2
        assert len([name for name in found if name.startswith(f"{stage}/events.out.tfevents")]) >= 2
        assert images_seen(found, stage) == [256, 512]
    for name in ("bank/bank.safetensors", "model/model.safetensors"):
        assert found[name] == (tiny_run / name).read_bytes(), name

    monkeypatch.setattr(start, "start_ray", stopped)
    train.main(command)
    assert files(uri) == found
    assert f"run {uri} has another config" in refused(train.main, *command, "--prior.width", "32")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes(found[f"model/{name}"])
    for model, out in ((f"{uri}/model", "a"), (str(tmp_path / "model"), "b")):
        sample.main(["--model", model, "--n", "4", "--out", str(tmp_path / out)])
    assert (tmp_path / "a" / "samples.png").read_bytes() == (tmp_path / "b" / "samples.png").read_bytes()


def fault_of(method: str, path: str, number: int) -> Fault:
    """In each EVERY requests of a method the last RUN fail, by turns in one way and in the other."""
    if number % EVERY < EVERY - RUN:
        return None
    return "reset" if number // EVERY % 2 else "slow down"


def test_a_training_ends_well_on_a_storage_that_fails(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.seen.clear()  # no fault meets the start of a run, which tries each request three times only
    with monkeypatch.context() as patch:
        patch.setattr(faults, "decide", fault_of)
        train.main(["--storage", f"{bucket}/runs", "--name", "faulty", *TINY])
    assert sum(faults.made.values()) > 2 * RUN
    found = files(f"{bucket}/runs/faulty")
    assert {"model/config.json", "model/model.safetensors", "metrics.json", "samples.png"} <= found.keys()
    for stage in ("prior", "vae"):
        assert images_seen(found, stage) == [256, 512]
