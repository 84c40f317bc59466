"""One thread a test process: tiny tensors gain nothing from more, and machines are shared.

For the same reason no test by hypothesis fails for being slow; each run tries the same cases.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from npdraw_dist import train
from npdraw_dist.config.cli import run_command
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.pipeline.store import Store
from tests.helpers.image_files import images
from tests.helpers.runs import IN_PROCESS, TINY

ROOT = Path(__file__).parents[1]
gc.disable()  # until all tests are imported: each look at what imports leave takes seconds
torch.set_num_threads(1)
settings.register_profile(
    "shared", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@cache
def group_of(file: str) -> str:
    """`ray`: its tests need the one local Ray of the tests. `nodes`: they start clusters of several nodes."""
    text = (ROOT / file).read_text()
    if "helpers.testbed" in text:
        return "nodes"
    return "ray" if "mark.ray" in text else "rest"


class Groups(LoadScopeScheduling):
    """One process runs all files of `ray`, and one those of `nodes`; each other file goes to any process."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        group = group_of(file)
        return file if group == "rest" else group


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest chooses by marks, and after a random order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Marks the slow cases of grids. Tests that take longest come first."""
    grids: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") is not None:
            grids.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in grids.values():
        number = cases[0].get_closest_marker("few").args[0]  # type: ignore[union-attr]
        kept = {round(index * (len(cases) - 1) / max(number - 1, 1)) for index in range(number)}
        for index, item in enumerate(cases):
            if index not in kept:
                item.add_marker(pytest.mark.slow)
    yield
    items.sort(key=lambda item: ("ray", "nodes", "rest").index(group_of(file_of(item.nodeid))))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported is no longer looked at for garbage, also in the process that hands out the tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)  # the check sees what is left when all patches are undone
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Ends Ray after the last of its tests: beside its idle processes the others take far longer.

    A test of the group `rest` that leaves Ray running fails: the tests after it would run in Ray's tasks.
    """
    yield
    here = group_of(file_of(item.nodeid))
    last = here == "ray" and nextitem is not None and group_of(file_of(nextitem.nodeid)) != "ray"
    left = here == "rest" and ray_runs()
    if last or left:
        import ray

        ray.shutdown()
    if left:
        pytest.fail(f"{item.nodeid} started Ray; run it in process, or mark its file as one of `ray`")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(main, *argv): exit status 2 and exactly one line on stderr, which it returns."""

    def call(main: Callable[[Sequence[str]], None], *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert error.endswith("\n")
        return error

    return call


def nodes(*each: float | tuple[float, float]) -> list[dict[str, Any]]:
    """As `ray.nodes` tells of nodes with so many CPUs, or CPUs and GPUs."""
    pairs = [node if isinstance(node, tuple) else (node, 0) for node in each]
    return [
        {
            "Alive": True,
            "NodeManagerAddress": f"10.0.0.{number}",
            "Resources": {name: float(has) for name, has in zip(("CPU", "GPU"), pair, strict=True) if has},
        }
        for number, pair in enumerate(pairs, 1)
    ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """cluster(...): the cluster has these `nodes`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda *each: monkeypatch.setattr("ray.nodes", lambda: nodes(*each))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run folder that is not there yet."""
    return Store.open(str(tmp_path), "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 40 images."""
    return images(tmp_path / "data", 40)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a bucket on S3."""
    from tests.helpers.s3 import s3_server  # moto takes seconds to import

    with s3_server() as uri:
        yield uri


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray as the commands start it."""
    import ray

    from npdraw_dist.distributed.start import start_ray

    start_ray(ScaleConfig(), object_store_mb=128)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one finished `train` with the budget TINY."""
    storage = tmp_path_factory.mktemp("runs")
    train.main(["--storage", str(storage), "--name", "tiny", *TINY])
    return storage / "tiny"


@pytest.fixture(scope="session")
def run_in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, made without Ray, with fewer images: once for all processes of the tests. Tests copy it."""
    own = tmp_path_factory.getbasetemp()
    storage = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "here"
    with FileLock(f"{storage}.lock"):
        if not (storage / "tiny" / "metrics.json").exists():
            few = ("--data.fraction", "0.05")
            train.main(["--storage", str(storage), "--name", "tiny", *TINY, *IN_PROCESS, *few])
    return storage / "tiny"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Torch's number of threads as each test begins: an earlier test may have set it for this process."""
    torch.set_num_threads(1)


@pytest.fixture
def threads_of_a_worker(one_thread: None) -> None:
    """A worker of the tests' Ray has all CPUs. The number decides in which order a product is summed."""
    torch.set_num_threads(os.cpu_count() or 1)
