"""The workers of a run end if its controller is killed, also on a machine that runs another Ray."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.resources import Workers
from npdraw_dist.distributed.run import TrainRun, run_training
from npdraw_dist.training.checkpoint import Criterion
from tests.helpers.local_context import Silent
from tests.helpers.processes import family, title, until

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


def waits(job: str, context: Any) -> None:
    Path(job, "started").touch()
    time.sleep(10 * LIMIT_S)


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def drive(folder: str) -> None:
    who = Workers(1, 1, 1, 0.0), ScaleConfig(), Criterion("valid/nll", "min")
    run: Any = TrainRun(waits, folder, *who, fs.LocalFileSystem(), folder, "prior")
    run_training(run, Silent())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray", "another_ray")
def test_the_workers_of_a_killed_driver_end(tmp_path: Path) -> None:
    """So does the mailbox, which outlives the driver to free their CPU."""
    free = ray.available_resources()["CPU"]
    driver = drive.remote(str(tmp_path))
    until((tmp_path / "started").exists, LIMIT_S)
    assert ray.available_resources()["CPU"] == free - 1
    assert any("Mailbox" in title(pid) for pid in family(os.getpid()))
    ray.cancel(driver, force=True)
    until(lambda: ray.available_resources()["CPU"] == free, LIMIT_S)
    until(lambda: not any("Mailbox" in title(pid) for pid in family(os.getpid())), LIMIT_S)
