"""docs/existing-cluster.md, followed word by word on two nodes: `ray start`, the wheel, `ray job submit`.

It runs with the Ray of this environment, and with the one in the folder that RAY_BEFORE names, which
`pip install --no-deps --target FOLDER ray==2.59.0` makes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import npdraw_dist
from tests.helpers.cluster_job import MARKS, ROOT
from tests.helpers.network import Namespaces, make_folder
from tests.helpers.processes import kill_all, known

pytestmark = MARKS

PAGE = (ROOT / "docs" / "existing-cluster.md").read_text()
OWN = re.compile(r"npdraw|__editable__|tune_spaces")  # what an installed checkout leaves in site-packages
RAY = re.compile(r"ray|ray-.*\.dist-info")
SECONDS = 400  # limit of a block


def block(name: str) -> str:
    """The fenced block of the page that is marked `tried: NAME`."""
    (found,) = re.findall(rf"^<!-- tried: {name} -->\n```\w+\n(.*?)^```", PAGE, re.M | re.S)
    return str(found)


def environment(folder: Path, other: Path | None) -> Path:
    """A virtual environment like a cluster's: all packages of this one but ours. Returns its programs.

    other: a folder with another Ray, which replaces the one of this environment.
    """
    packages, venv = folder / "packages", folder / "venv"
    packages.mkdir()
    found = [path for path in Path(sysconfig.get_path("purelib")).iterdir() if not OWN.search(path.name)]
    if other is not None:
        found = [path for path in found if not RAY.fullmatch(path.name)]
        found += [path for path in other.iterdir() if RAY.fullmatch(path.name)]
    for path in found:
        (packages / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "cluster.pth").write_text(f"{packages}\n")
    program = venv / "bin" / "ray"
    program.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m ray.scripts.scripts "$@"\n')
    program.chmod(0o755)
    return venv / "bin"


class Machines:
    """A context manager: two machines with one home folder; each has its own network and disk for Ray."""

    def __init__(self, folder: Path, programs: Path) -> None:
        for name in ("home", "ray", "n0", "n1"):
            (folder / name).mkdir()
        kept = {key: value for key, value in os.environ.items() if not re.match(r"RAY_|PYTHON|PIP_", key)}
        kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
        self.env = kept | {"HOME": str(folder / "home"), "PATH": f"{programs}:{os.environ['PATH']}"}
        # Nothing comes from an index: all requirements of the wheel are there.
        self.env |= {"PIP_NO_INDEX": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder / "ray")}
        self.folder = folder
        self.network = Namespaces(folder.name)
        self.addresses = [self.network.add(number) for number in range(2)]

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(2):
            while pids := self.network.pids(number, ()):
                kill_all(known(pids))
        self.network.close()

    def follow(self, name: str, where: Path, number: int = 0, **more: str) -> str:
        """Runs a block of the page in the folder `where` on a machine, and returns its output."""
        text = block(name).replace("192.0.2.10", self.addresses[0]).replace("192.0.2.11", self.addresses[1])
        text = text.replace("/shared", str(self.folder / "shared"))
        # `ip netns exec` has given the command a mount namespace of its own.
        disk = ["sh", "-c", 'mount --bind "$0" "$RAY_TMPDIR" && exec "$@"', str(self.folder / f"n{number}")]
        command = [*self.network.prefix(number), *disk, "bash", "-e", "-c", text]
        done = subprocess.run(
            command, cwd=where, env=self.env | more, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because Ray's sockets are in it."""
    made = make_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the block `wheel` was run, with a copy of this source as its repository."""
    source, empty = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("empty")
    for name in ("npdraw_dist", "tune_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    text = block("wheel").replace("git+REPOSITORY", str(source))
    subprocess.run(["bash", "-e", "-c", text], cwd=empty, check=True)
    return empty


@pytest.mark.parametrize("which", ["this", "before"])
def test_the_page_leads_to_a_run_on_a_cluster_without_our_image(
    which: str, folder: Path, wheel: Path
) -> None:
    """Each node installs the wheel and nothing else, and the run has its numbers."""
    before = os.environ.get("RAY_BEFORE")
    if which == "before" and before is None:
        pytest.skip("RAY_BEFORE names no folder with an older Ray")
    programs = environment(folder, Path(str(before)) if which == "before" else None)
    version = subprocess.run([str(programs / "ray"), "--version"], capture_output=True, text=True).stdout
    assert (version.split()[-1] == ray.__version__) == (which == "this")
    with Machines(folder, programs) as machines:
        machines.follow("head", wheel)
        machines.follow("worker", wheel, 1)
        machines.follow("submit", wheel, RAY_AUTH_MODE="token")
    run = folder / "shared" / "runs" / "first"
    assert json.loads((run / "metrics.json").read_text())["test/nll_iwae"] > 0
    assert (run / "model" / "model.safetensors").is_file()
    for node in ("n0", "n1"):
        installed = folder.glob(
            f"{node}/**/runtime_resources/pip/*/virtualenv/lib/python*/site-packages/*.dist-info"
        )
        assert [path.name for path in installed] == [f"npdraw_dist-{npdraw_dist.__version__}.dist-info"], node
