"""A real sweep whose trials share a GPU, which Ray only pretends."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.tune_spaces.test_sweep_smoke import LIMIT_S, ROOT, command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_trials_share_a_gpu(tmp_path: Path) -> None:
    """Their stages, samples and scores too, each in processes with half of it."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment = {**kept, "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "GPU": 1})}
    flags = ["--space", "smoke", "--scheduler", "none", "--scale.gpus_per_worker", "0.5"]
    done = subprocess.run(
        command(tmp_path, *flags), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 trials: 2 at once, each 1 worker(s) of 1 CPU(s) and 1/2 of a GPU" in done.stdout
    table = pq.read_table(tmp_path / "s" / "results.parquet")
    assert table.column("status").to_pylist() == ["finished", "finished"]
