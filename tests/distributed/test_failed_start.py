"""Workers that die before their process group is up end a run after `scale.max_failures` starts again."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed import run as ray_run
from npdraw_dist.distributed.resources import Workers
from npdraw_dist.distributed.run import ClusterTorchConfig, TrainRun, run_training
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.checkpoint import Criterion
from tests.helpers.local_context import Silent
from tests.helpers.processes import until

MOST = 9  # starts that fail


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_dies_at_each_start_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more starts than CPUs, so each start must free its CPU for the next one."""
    free, starts = ray.available_resources()["CPU"], tmp_path / "starts"
    assert free < 4

    # Local names, which Ray sends whole.
    def die() -> None:
        with starts.open("a") as file:
            file.write("start\n")
        if len(starts.read_text().splitlines()) <= MOST:
            os._exit(1)

    class Backend(ClusterTorchConfig().backend_cls):  # type: ignore[misc]
        def connect(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(die)

    class Dying(ClusterTorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    monkeypatch.setattr(ray_run, "ClusterTorchConfig", Dying)
    who = Workers(1, 1, 1, 0.0), ScaleConfig(max_failures=3), Criterion("valid/nll", "min")
    run: Any = TrainRun(lambda job, context: None, None, *who, fs.LocalFileSystem(), str(tmp_path), "prior")
    with pytest.raises(UserError, match="max_failures 3 is used up"):
        run_training(run, Silent())  # type: ignore[arg-type]
    assert starts.read_text().splitlines() == ["start"] * 4
    until(lambda: ray.available_resources().get("CPU") == free)
