"""A process keeps freed memory, and a command sets its threads before it imports torch."""

import json
import os
import resource
import subprocess
import sys
from typing import Any

import pytest
import torch

from npdraw_dist.system.process import COMPUTE, local_device, prepare_to_compute

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
TENSORS, ELEMENTS = 4, 1 << 24
LEAST_FAULTS = TENSORS * 4 * ELEMENTS // resource.getpagesize()  # of tensors whose pages are all new

# Prints its page faults, in a thread as Ray Train's is. It uses nothing of ours but `run_command`.
COMMAND = f"""
import os, resource, sys, threading

def measure():
    import torch

    for _ in range(2):
        torch.ones({ELEMENTS})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TENSORS}):
        torch.ones({ELEMENTS})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def main(argv):
    assert "torch" not in sys.modules
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()

if sys.argv[1:] == ["prepared"]:
    from npdraw_dist.config.cli import run_command

    os.execve = None  # a command is one process
    run_command(main)
main([])
"""


def faults(*words: str, **variables: str) -> int:
    environment = {**{k: v for k, v in os.environ.items() if k not in COMPUTE}, **variables}
    command = [sys.executable, "-c", COMMAND, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@ON_LINUX
def test_a_tensor_takes_the_memory_of_one_that_is_gone() -> None:
    device = local_device(use_gpu=False)
    torch.ones(ELEMENTS, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TENSORS):
        torch.ones(ELEMENTS, device=device)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < LEAST_FAULTS // 10


@ON_LINUX
def test_the_process_of_a_command_and_those_of_ray_keep_their_memory() -> None:
    """A command uses `mallopt`; processes of Ray start with variables."""
    assert faults() >= LEAST_FAULTS
    assert faults("prepared") < LEAST_FAULTS // 10
    assert faults(**COMPUTE) < LEAST_FAULTS // 10


def test_who_says_how_threads_wait_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # is put back
        monkeypatch.delenv(name)
    prepare_to_compute()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare_to_compute()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare_to_compute()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_command_of_a_job_has_the_threads_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives it one, as to any process without CPUs, unless the job asks for another number."""
    found = []
    jobs: tuple[dict[str, Any] | None, ...] = (
        None,
        {},
        {"runtime_env": {}},
        {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
    )
    for job in jobs:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        if job is not None:
            monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
        prepare_to_compute()
        found.append(os.environ.get("OMP_NUM_THREADS"))
    assert found == ["1", None, None, "1"]
