"""Kinds of models that other packages add by entry points: the example of docs/kinds.md, installed."""

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUP = "npdraw_dist.kinds"


def block(language: str) -> str:
    """The first block of this language in docs/kinds.md."""
    found = re.search(rf"^( *)```{language}\n(.*?)^\1```", (ROOT / "docs/kinds.md").read_text(), re.M | re.S)
    assert found is not None
    return textwrap.dedent(found[2])


def install(folder: Path, name: str, points: dict[str, str]) -> None:
    """Writes what Python reads of an installed package, as pip does."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{kind} = {code}" for kind, code in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    project = tomllib.loads(block("toml"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    (folder / f"{module}.py").write_text(block("python"))
    install(folder, "linear_vae", project["project"]["entry-points"][GROUP])
    others = {"gone": "nowhere:Model", "number": "math:pi", "vae": "linear_vae:LinearVAE"}
    install(folder, "others", others)
    return folder


def python(packages: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=packages, capture_output=True, text=True, timeout=300
    )


def test_a_kind_of_another_package_trains_and_is_scored(packages: Path, tmp_path: Path) -> None:
    sizes = ["--vae.images", "96", "--train.batch_size", "16", "--train.micro_batch", "16", "--eval.k", "2"]
    where = ["--storage", str(tmp_path), "--name", "own", "--scale.num_workers", "0", "--eval.images", "8"]
    command = ["-m", "npdraw_dist.train", "--model.kind", "linear", "--data.fraction", "0.1", *sizes, *where]
    done = python(packages, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    spec = json.loads((tmp_path / "own/model/config.json").read_text())["spec"]
    assert (spec["kind"], spec["latents"]) == ("linear", 16)
    assert json.loads((tmp_path / "own/metrics.json").read_text())["test/nll_iwae"] > 0
    use = (
        f"from linear_vae import LinearVAE; print(LinearVAE.from_pretrained({str(tmp_path / 'own')!r}).title)"
    )
    assert python(packages, "-c", use).stdout.strip() == "Linear VAE"


def test_a_kind_of_another_package_stands_in_a_comparison(packages: Path, tmp_path: Path) -> None:
    kinds = ["--kinds", "npdraw,linear", "--num-samples", "3", "--storage", str(tmp_path), "--dry-run"]
    done = python(packages, "-m", "tune_spaces.sweep", "--space", "comparison", *kinds)
    assert done.returncode == 0, done.stderr[-3000:]
    trials = [line for line in done.stdout.splitlines() if line.startswith("linear")]
    assert len(trials) == 3
    latents = {int(found) for line in trials for found in re.findall(r"baseline\.latents (\d+)", line)}
    assert latents == {8, 16, 32}
    assert all("vae.learning_rate" in line for line in trials)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gone", "error: the kind gone cannot be loaded from nowhere:Model: No module named 'nowhere'"),
        ("number", "error: the kind number, math:pi, is not a class of models"),
        ("nothing", "model.kind"),
    ],
)
def test_a_kind_that_is_no_model_is_refused_in_one_line(
    packages: Path, tmp_path: Path, kind: str, words: str
) -> None:
    done = python(packages, "-m", "npdraw_dist.train", "--model.kind", kind, "--storage", str(tmp_path))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_names_import_nothing_and_ours_stay_ours(packages: Path) -> None:
    look = """
import sys
from npdraw_dist.config.registry import KINDS
import npdraw_dist.config.schema
print(list(KINDS)[0], "linear" in KINDS, "torch" in sys.modules, "linear_vae" in sys.modules)
print(KINDS["vae"].__module__, KINDS["linear"].title)
"""
    first, second = python(packages, "-c", look).stdout.splitlines()
    assert first == "npdraw True False False"
    assert second == "npdraw_dist.baselines.vae Linear VAE"


def test_the_contract_is_short() -> None:
    assert len((ROOT / "npdraw_dist/baselines/contract.py").read_text().splitlines()) <= 40
