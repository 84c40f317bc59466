"""Training under random faults ends with the bytes of a calm run. `tests.helpers.soak` runs for longer."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_runs_under_random_faults_equal_a_calm_one() -> None:
    command = [sys.executable, "-m", "tests.helpers.soak", "--seconds", "120", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("all equal to the calm run")
    assert " 0 faults" not in done.stdout
