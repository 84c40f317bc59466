"""Ray with four GPUs that it only pretends: who takes which share. What is computed is computed on CPUs."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from npdraw_dist import train
from npdraw_dist.bank.build import build_bank
from npdraw_dist.config.schema import BankConfig, ScaleConfig
from npdraw_dist.distributed import actors, elastic, resources
from npdraw_dist.distributed.actors import on_gpu
from npdraw_dist.distributed.resources import living_nodes
from npdraw_dist.distributed.start import start_ray
from npdraw_dist.distributed.tasks import Loaded, Pool
from npdraw_dist.evaluate.work import Found, pool_of
from npdraw_dist.evaluate.work import run as run_items
from npdraw_dist.system.errors import UserError
from tests.helpers.processes import until
from tests.helpers.runs import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCALE = ScaleConfig()


@pytest.fixture(scope="module", autouse=True)
def pretended() -> Iterator[None]:
    """Four CPUs and four GPUs, in place of the Ray that other tests share."""
    running = ray.is_initialized()
    ray.shutdown()
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 4, "GPU": 4})
    try:
        start_ray(SCALE, object_store_mb=128)
    finally:
        del os.environ["RAY_OVERRIDE_RESOURCES"]
    yield
    ray.shutdown()
    if running:
        start_ray(SCALE, object_store_mb=128)


def free_gpus() -> float:
    return float(ray.available_resources().get("GPU", 0.0))


def test_a_run_on_shares_of_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two ranks on a GPU each, then an elastic stage on shares of one."""
    own = ["--storage", str(tmp_path), "--name", "run"]
    train.main([*own, *TINY, "--scale.num_workers", "2", "--stages", "data,bank,parse,prior"])
    train.main([*own, *TINY, "--scale.num_workers", "1:2", "--scale.gpus_per_worker", "0.2"])
    printed = capsys.readouterr().out
    assert "prior: 2 workers of 2 CPUs and a GPU" in printed
    assert "vae: 1 to 2 workers of 2 CPUs and 1/5 of a GPU" in printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test/nll_iwae"] > 0
    until(lambda: free_gpus() == 4)


def test_no_gpu_is_taken_before_training(tmp_path: Path) -> None:
    least = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            least.append(free_gpus())

    thread = threading.Thread(target=look)
    thread.start()
    own = ["--storage", str(tmp_path), "--name", "idle", *TINY, "--stages", "data,bank,parse"]
    train.main([*own, "--scale.num_workers", "4", "--scale.cpus_per_worker", "1"])
    ended.set()
    thread.join()
    assert len(least) > 10
    assert min(least) == 4


@pytest.mark.timeout(300)
def test_an_elastic_run_takes_what_others_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another job has three of four GPUs, and releases them while the run trains on the fourth."""
    monkeypatch.setattr(elastic, "LOOK_S", 1.0)
    other = Holder.options(num_gpus=3).remote()  # type: ignore[attr-defined]
    ray.get(other.ready.remote())
    rows = tmp_path / "run" / "prior" / "metrics.jsonl"

    def release() -> None:
        until(lambda: rows.exists() and len(rows.read_text().splitlines()) > 2, 120)
        ray.kill(other)

    thread = threading.Thread(target=release)
    thread.start()
    own = ["--storage", str(tmp_path), "--name", "run", *TINY, "--stages", "data,bank,parse,prior"]
    own += ["--scale.num_workers", "1:4", "--scale.cpus_per_worker", "1", "--prior.images", "65536"]
    train.main([*own, "--train.eval_every_images", "1024"])
    thread.join()
    said = capsys.readouterr().out
    assert "workers restart: their number changes from 1 to 4" in said
    seen = [json.loads(line)["images_seen"] for line in rows.read_text().splitlines()]
    assert seen == list(range(1024, 65537, 1024))
    until(lambda: free_gpus() == 4)


class Where:
    """Says which GPU it holds."""

    def __call__(self, item: int) -> Found:
        time.sleep(0.2)
        return Found(1, ids=[str(name) for name in ray.get_gpu_ids()])


def test_actors_of_an_evaluation_share_gpus() -> None:
    pool = pool_of(ScaleConfig(gpus_per_worker=0.5, num_workers=3), sized=True)
    assert pool == Pool(3, 0.5)
    found = run_items("where", list(range(12)), 12, Loaded(Where), pool)
    assert {len(result.ids) for result in found} == {1}
    until(lambda: free_gpus() == 4)


def refuse(device: torch.device) -> None:
    raise UserError("too few patches")


def state(device: torch.device, number: int) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "gpus": ray.get_gpu_ids(),
        "free": ray.available_resources().get("GPU", 0.0),
        "threads": os.environ["OMP_NUM_THREADS"],
        "number": number,
    }


def test_the_drivers_work_holds_a_gpu_in_a_process_that_ends() -> None:
    found, _ = on_gpu(SCALE, "sample", state, 7)
    assert (found["number"], len(found["gpus"]), found["free"]) == (7, 1, 3)
    assert found["threads"] == "1"  # a CPU for each GPU
    assert found["pid"] != os.getpid()
    until(lambda: free_gpus() == 4)
    until(lambda: not Path(f"/proc/{found['pid']}").exists())
    with pytest.raises(UserError, match=r"^too few patches$"):
        on_gpu(SCALE, "bank", refuse)
    until(lambda: free_gpus() == 4)
    forbidden = on_gpu(ScaleConfig(use_gpu=False), "sample", lambda device: os.getpid())
    assert forbidden == (os.getpid(), 0.0)


@ray.remote(num_gpus=4, num_cpus=0)  # type: ignore[untyped-decorator]
class Holder:
    """Another job that has all GPUs."""

    def ready(self) -> None: ...


def test_a_gpu_that_is_not_free_is_waited_for_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = Holder.remote()  # type: ignore[attr-defined]
    ray.get(holder.ready.remote())
    until(lambda: free_gpus() == 0)
    monkeypatch.setattr(actors, "WAIT_S", 1.0)
    own = resources.free_now

    def release() -> Any:
        found = own()
        ray.kill(holder)
        return found

    monkeypatch.setattr(resources, "free_now", release)
    assert on_gpu(SCALE, "sample", state, 1)[0]["number"] == 1
    assert "4 GPUs; free: " in " ".join(capsys.readouterr().out.split())


def test_shards_of_patches_share_gpus() -> None:
    """FAISS finds none there, so the CPUs do it, with the same result."""
    assert sum(node.gpus for node in living_nodes()) == 4
    patches = np.random.default_rng(0).integers(0, 256, (900, 4)).astype(np.uint8)
    one, _ = build_bank(patches, 1, BankConfig(size=5), seed=0)
    several, _ = build_bank(patches, 1, BankConfig(size=5, shards=9), seed=0, gpu=None)
    assert torch.equal(one.parts, several.parts)
    until(lambda: free_gpus() == 4)
