"""Every command and every Python example of README and docs runs; those that train have a tiny budget."""

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdraw_dist.__main__ import COMMANDS
from npdraw_dist.bench.__main__ import Bench
from npdraw_dist.config.cli import parse_flags
from npdraw_dist.evaluate.__main__ import Evaluate, spread
from tests.helpers.runs import TINY
from tests.helpers.tiny_fit import fit_few

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# In the order in which a new user meets them. docs/cluster.md has tests of its own.
NAMES = "install start commands data editing evaluate sweeps speed"
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in NAMES.split())]
FLAGS = [word for word in TINY if not word.startswith("--config")]


def blocks(language: str) -> list[str]:
    return [
        block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)
    ]


def commands() -> list[list[str]]:
    """The module and the words of each `npdraw COMMAND ...` line, without comments and redirections."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
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


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the run `digits`, as after the first command of the README, and pictures."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "digits")
    (tmp_path / "my_pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "my_pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_two_lines_are_the_two_commands() -> None:
    first, second = blocks("bash")[:2]
    assert first.strip() == "pip install -e . && npdraw train"
    assert second.strip() == "pip install -e '.[test]' && python -m pytest"


@pytest.mark.slow
@pytest.mark.ray
def test_the_commands_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands()
    assert len(found) >= 20
    for module, *argv in found:
        main = main_of(module)
        trained = {"from_shards", "digits-vae"}.intersection(argv)
        if module in ("npdraw_dist.train", "tune_spaces.sweep") and not trained:
            # Other tests train; here the flags are tested.
            main([*argv, *(() if "--dry-run" in argv else ("--dry-run",))])
        elif "runs/comparison-mnist_cpu-10" in argv:  # which takes hours to train
            parse_flags(Evaluate, module, spread(argv, "--compare"))
        elif module == "npdraw_dist.bench":
            parse_flags(Bench, module, argv)  # its own tests run it
        elif module == "npdraw_dist.train":
            main([*argv, *FLAGS])
        elif module == "npdraw_dist.extractor":
            main([*argv, "--images", "640"])
        else:
            main(argv)
        printed = capsys.readouterr().out
        if "--dry-run" in argv:
            (folder / "my.yaml").write_text(printed)
    assert (folder / "runs" / "from_shards" / "metrics.json").is_file()
    assert (folder / "samples" / "generation.gif").stat().st_size > 1000
    card = (folder / "runs" / "digits" / "model" / "README.md").read_text()
    assert "Measured by `npdraw evaluate`" in card


@pytest.mark.ray
def test_the_python_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_few(12, monkeypatch)
    names: dict[str, object] = {}
    for example in blocks("python"):
        exec(example, names)
    assert len(list((folder / "tiles" / "test").iterdir())) == 138
    assert names["nats"].shape == (8,)  # type: ignore[attr-defined]
    assert (folder / "edited.png").is_file()
