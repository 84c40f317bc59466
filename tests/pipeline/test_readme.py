"""Every command of README and docs runs, with a tiny budget."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist import prepare, train_extractor
from npdraw_dist.__main__ import COMMANDS
from npdraw_dist.bench.__main__ import Bench
from npdraw_dist.config.cli import parse_flags, validate
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.evaluate.settings import Evaluate, spread
from npdraw_dist.fitting.__main__ import Fit
from tests.helpers.notebooks import run as run_cells
from tests.helpers.runs import TINY
from tests.helpers.tiny_fit import fit_few
from tune_spaces.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# In the order in which a new user meets them. docs/cluster.md has tests of its own.
NAMES = "index conditions your-pictures drawing models train compare"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES.split())]


def blocks(language: str, pages: Sequence[Path]) -> list[str]:
    text = "\n".join(page.read_text() for page in pages)
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands() -> list[list[str]]:
    """The module and the words of each `npdraw COMMAND ...` line, without comments and redirections."""
    lines = [line for block in blocks("bash", PAGES) for line in block.splitlines()]
    calls = [line.split("&&")[-1].split("#")[0].split(">")[0].strip() for line in lines]
    once = dict.fromkeys(call for call in calls if call.startswith("npdraw "))
    return [[COMMANDS[name].module, *argv] for _, name, *argv in map(shlex.split, once)]


def main_of(module: str) -> Callable[[Sequence[str]], None]:
    """The function `main` that `python -m MODULE` calls; a package has it in `__main__.py`."""
    found = import_module(module)
    if hasattr(found, "__path__"):
        found = import_module(f"{module}.__main__")
    main: Callable[[Sequence[str]], None] = found.main
    return main


def test_the_commands_run(tiny_run: Path, users_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They find the run `digits`, which the first command of the README makes."""
    for name in ("digits", "my_pictures", "flags"):
        shutil.copytree(tiny_run, users_folder / "runs" / name)
    for module, *argv in commands():
        main = main_of(module)
        trained = {"from_shards", "digits-vae"}.intersection(argv)
        if module in ("npdraw_dist.train", "tune_spaces.sweep") and not trained:
            # Other tests train; here the flags are tested.
            main([*argv, *(() if "--dry-run" in argv else ("--dry-run",))])
        elif "runs/comparison-mnist_cpu-10" in argv:  # which takes hours to train
            parse_flags(Report, module, spread(argv, "--sweeps"))
        elif "--check-conditions" in argv:  # of models that nothing trains in this test
            parse_flags(Evaluate, module, argv)
        elif "MNIST_FOLDER" in argv:
            parse_flags(train_extractor.TrainExtractor, module, argv)
        elif module == "npdraw_dist.bench":  # its own tests run it
            parse_flags(Bench, module, argv)
        elif module == "npdraw_dist.train":
            main([*argv, *TINY])
        elif module == "npdraw_dist.fitting":
            validate(Fit, parse_flags(Fit, module, ["--pictures", *argv]))
        elif module == "npdraw_dist.train_extractor":
            main([*argv, "--images", "640"])
        else:
            main(argv)
        printed = capsys.readouterr().out
        if "--dry-run" in argv:
            Path("my.yaml").write_text(printed)
    assert Path("runs/from_shards/metrics.json").is_file()
    assert Path("samples/generation.gif").stat().st_size > 1000
    assert "Measured by `npdraw evaluate`" in Path("runs/digits/model/config.json").read_text()


def test_the_notebook_of_the_cluster_runs(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_few(24, monkeypatch)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = [cell.printed for cell in run_cells("to_the_cluster", names)]
    assert names["model"].sample(2).shape == (2, 1, 28, 28)
    assert "num_workers: '2:8'" in printed[-1]


def test_a_model_is_measured_on_a_prepared_set(tiny_run: Path, tmp_path: Path) -> None:
    prepare.main(["--data.source", "digits", "--data.fraction", "0.3", "--out", str(tmp_path / "set")])
    flags = ["--data.source", "parquet", "--data.path", str(tmp_path / "set")]
    file = tmp_path / "numbers.json"
    few = ["--k", "2", "--images", "16", "--out", str(file)]
    evaluate.main(["--model", str(tiny_run / "model"), *flags, *few])
    assert json.loads(file.read_text())["n"] == 16
    train_extractor.main([*flags, "--images", "128", "--features", "4", "--out", str(tmp_path / "c.pt")])
    assert (tmp_path / "c.pt").is_file()
