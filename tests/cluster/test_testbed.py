"""Three nodes on one machine: a job over two of them equals one node, and nothing is left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from npdraw_dist.core.errors import UserError
from tests.helpers import testbed as module
from tests.helpers.network import Loopback, clean
from tests.helpers.runs import TINY
from tests.helpers.testbed import Testbed
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]

JOB = ["npdraw_dist.train", *TINY, "--scale.num_workers", "2", "--scale.cpus_per_worker", "1"]
TESTBED = [sys.executable, "-m", "tests.helpers.testbed"]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.timeout(900),  # of a busy machine; all of it takes two minutes on two idle cores
    pytest.mark.skipif(sys.platform != "linux", reason="the test bed needs Linux"),
]
namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)


def namespaces_of(owner: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"npd-{owner}-")]


def left(owner: int) -> list[str]:
    """Namespaces, folders and processes of the test beds of a process."""
    folders = [str(path) for path in Path("/tmp").glob(f"npd-{owner}-*")]
    names = namespaces_of(owner) if shutil.which("ip") else []
    return names + folders + processes(f"/tmp/npd-{owner}-")


def processes(text: str) -> list[str]:
    """The command lines that hold `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line:
                found.append(line)
    return found


def until_in(owner: subprocess.Popen[bytes], text: str) -> None:
    """Waits for a process of the test bed of `owner` whose command line holds `text`."""
    deadline = time.monotonic() + 120
    while not any(text in line for line in processes(f"/tmp/npd-{owner.pid}-")):
        assert owner.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def owner() -> Iterator["subprocess.Popen[bytes]"]:
    """A test bed of one node that another process owns, with its head starting."""
    process = subprocess.Popen([*TESTBED, "--nodes", "1", "--", "sleep", "600"], cwd=ROOT)
    until_in(process, "gcs_server")
    yield process
    process.kill()
    process.wait()
    clean()


@namespaces
@pytest.mark.slow  # two minutes; in small form: tests/training/test_two_ranks.py, test_node_faults
def test_a_job_on_two_nodes_equals_one_node(tmp_path: Path) -> None:
    shared, alone = ["--storage", str(tmp_path), "--name"], [sys.executable, "-m"]
    owner = subprocess.Popen(
        [*TESTBED, "--", "python", "-m", *JOB, *shared, "nodes"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    out, _ = owner.communicate()
    assert owner.returncode == 0, out
    assert "3 nodes up" in out
    assert "10.77.0.1, 10.77.0.2, 10.77.0.3" in out
    assert re.search(r"training workers ran on [23] nodes", out)  # prior and VAE choose anew
    assert left(owner.pid) == []

    done = subprocess.run([*alone, *JOB, *shared, "one"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("nodes", "one")]
    assert weights[0] == weights[1]
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("nodes", "one")]
    results = [{k: v for k, v in m.items() if not k.endswith(("seconds", "_per_s"))} for m in metrics]
    assert results[0] == results[1]
    assert re.search(rf"NLL\s+{results[0]['test/nll_iwae']:.2f}\s+±", out)  # the table of the run


@pytest.mark.slow
@namespaces
def test_nodes_come_and_go() -> None:
    with Testbed(count=2) as testbed:
        nodes = testbed.query("nodes")
        assert [node["state"] for node in nodes] == ["ALIVE"] * 2
        assert {node["node_ip"] for node in nodes} == {"10.77.0.1", "10.77.0.2"}
        assert testbed.network.pids(1, []) != set()
        testbed.kill_node(1)
        assert testbed.network.pids(1, []) == set()
        assert testbed.add_node() == 2
        wanted = {"10.77.0.1": "ALIVE", "10.77.0.2": "DEAD", "10.77.0.3": "ALIVE"}
        # Ray notices a death only after some missed health checks.
        until(lambda: {n["node_ip"]: n["state"] for n in testbed.query("nodes")} == wanted, 120)
        assert testbed.submit(["python", "-c", "raise SystemExit(3)"]).wait() == 1
    assert left(os.getpid()) == []


@pytest.mark.slow
@namespaces
def test_sigterm_leaves_nothing(owner: "subprocess.Popen[bytes]") -> None:
    assert namespaces_of(owner.pid) != []
    owner.terminate()
    assert owner.wait(60) == 128 + signal.SIGTERM
    assert left(owner.pid) == []


@pytest.mark.slow
@namespaces
def test_clean_removes_what_a_killed_one_left(owner: "subprocess.Popen[bytes]") -> None:
    clean()
    assert len(namespaces_of(owner.pid)) == 2, "a living test bed was cleaned away"
    owner.kill()
    owner.wait()
    assert left(owner.pid) != []
    assert subprocess.run([*TESTBED, "--clean"], cwd=ROOT).returncode == 0
    assert left(owner.pid) == []


@pytest.mark.slow
def test_the_loopback_serves_where_namespaces_are_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_network", lambda _: Loopback())
    with Testbed(count=2) as testbed:
        states = {node["node_ip"]: node["state"] for node in testbed.query("nodes")}
        assert states == {"127.0.0.2": "ALIVE", "127.0.0.3": "ALIVE"}
        inside = testbed.network.pids(0, [testbed.nodes[0].processes[0].pid])
        assert len(inside) > 5
    assert left(os.getpid()) == []
    assert testbed.network.pids(0, inside) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "^give the command after --"),
        (["--", "python", "-m", "npdraw_dist.train"], "^--storage runs is in the job's own folder"),
        (
            ["--", "python", "-m", "tune_spaces.sweep", "--storage=here"],
            "^--storage here is in the job's",
        ),
    ],
)
def test_mistakes_are_told_before_any_node_starts(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module.main(arguments)
