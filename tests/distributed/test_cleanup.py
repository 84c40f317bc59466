"""The workers of a run end if its controller is killed, also on a machine that runs another Ray."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.train
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from npdraw_dist.distributed.ray_patches import Trainer, replace_cleaner
from tests.helpers.processes import until

LIMIT_S = 90
OTHER = """
import ray
ray.init("local", num_cpus=1, object_store_memory=80 << 20)
print("up", flush=True)
input()
"""


@pytest.fixture
def another_ray() -> Iterator[None]:
    command = [sys.executable, "-c", OTHER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line.strip() == "up" for line in process.stdout)
    yield
    process.communicate("\n")


def waits(config: dict[str, str]) -> None:
    Path(config["started"]).touch()
    time.sleep(10 * LIMIT_S)


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def drive(folder: str) -> None:
    Trainer(
        waits,
        train_loop_config={"started": f"{folder}/started"},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="run", storage_path=folder),
    ).fit()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray", "another_ray")
def test_the_workers_of_a_killed_controller_end(tmp_path: Path) -> None:
    free = ray.available_resources()["CPU"]
    driver = drive.remote(str(tmp_path))
    until((tmp_path / "started").exists, LIMIT_S)
    assert ray.available_resources()["CPU"] == free - 1
    ray.cancel(driver, force=True)
    until(lambda: ray.available_resources()["CPU"] == free, LIMIT_S)


@pytest.mark.parametrize(
    "moved", ["callbacks.placement_group_callback", "execution.controller.placement_group_cleaner"]
)
def test_a_ray_of_other_names_is_left_as_it_is(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks = [PlacementGroupCleanerCallback()]
    assert type(replace_cleaner(callbacks)[0]) is not PlacementGroupCleanerCallback
    monkeypatch.setitem(sys.modules, f"ray.train.v2._internal.{moved}", None)
    monkeypatch.delattr(f"ray.train.v2._internal.{moved}")
    assert replace_cleaner(callbacks) == callbacks
