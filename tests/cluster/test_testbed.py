"""The test bed as a command: nothing is left behind, and mistakes are told."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npdraw_dist.core.errors import UserError
from tests.helpers import testbed as module
from tests.helpers.network import clean
from tests.helpers.processes import title, until

ROOT = Path(__file__).parents[2]
TESTBED = [sys.executable, "-m", "tests.helpers.testbed"]
namespaces = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need Linux, root and iproute2",
)


def left(owner: int) -> list[str]:
    """Namespaces, folders and processes of the test beds of a process."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    found = [line for line in listed.splitlines() if line.startswith(f"npd-{owner}-")]
    return found + [str(path) for path in Path("/tmp").glob(f"npd-{owner}-*")] + running(f"/tmp/npd-{owner}-")


def running(text: str) -> list[str]:
    """The command lines that hold `text`."""
    lines = [title(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    return [line for line in lines if text in line]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@namespaces
def test_a_job_ends_with_its_test_bed_and_clean_removes_what_a_killed_one_left() -> None:
    command = [*TESTBED, "--nodes", "2", "--", "python", "-c", "print('a', 'job')"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        out, _ = owner.communicate()
    assert owner.returncode == 0, out
    assert "10.77.0.1, 10.77.0.2" in out
    assert "a job" in out
    assert left(owner.pid) == []

    killed = subprocess.Popen([*TESTBED, "--nodes", "1", "--", "sleep", "600"], cwd=ROOT)
    try:
        own = f"/tmp/npd-{killed.pid}-"
        until(lambda: any("gcs_server" in line for line in running(own)) or killed.poll() is not None, 120)
        clean()
        assert any("_switch" in name for name in left(killed.pid)), "a living test bed was cleaned away"
        killed.kill()
        killed.wait()
        assert left(killed.pid) != []
        assert subprocess.run([*TESTBED, "--clean"], cwd=ROOT).returncode == 0
        assert left(killed.pid) == []
    finally:
        killed.kill()
        killed.wait()
        clean()


def test_mistakes_are_told_before_any_node_starts() -> None:
    with pytest.raises(UserError, match="give the command after --"):
        module.main([])
    with pytest.raises(UserError, match="--storage here is in the job's"):
        module.main(["--", "python", "-m", "tune_spaces.sweep", "--storage=here"])
