"""Flags, help and exit statuses of commands, alone and as `npdraw COMMAND`."""

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from npdraw_dist.__main__ import COMMANDS
from npdraw_dist.config.cli import HINTS, Command, parse_flags, run_command, validate
from npdraw_dist.config.help import settings_of
from npdraw_dist.config.load import build
from npdraw_dist.config.schema import Experiment
from npdraw_dist.edit.__main__ import Edit
from npdraw_dist.evaluate.__main__ import Evaluate
from npdraw_dist.fitting.__main__ import Fit
from npdraw_dist.sample import Sample
from npdraw_dist.system import process
from npdraw_dist.system.errors import StorageFailed, UserError
from npdraw_dist.system.made_by import command_line
from npdraw_dist.system.version import __version__
from npdraw_dist.train import Train, chosen_stages, main
from tune_spaces.sweep import Sweep

Printed = pytest.CaptureFixture[str]
CONTRACT = {
    *("bank.max_patches", "bank.shards", "bank.size", "data.cache_mb", "data.fraction"),
    *("data.max_bad_fraction", "data.path", "data.source", "grid.patch", "grid.stride", "model.kind"),
    *("parse.order", "parse.steps", "prior.attention_heads", "prior.depth", "prior.heads", "prior.images"),
    *("prior.width", "scale.num_workers", "scale.use_gpu", "seed", "train.batch_size", "vae.images"),
}
OF_THE_COMMAND = {"config", "dry-run", "name", "preset", "stages", "storage"}


def npdraw(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npdraw_dist", *words], capture_output=True, text=True, check=False
    )


def lines_of(words: list[str], capsys: Printed, command: type = Train) -> dict[str, str]:
    """Flag -> its line of the help, joined with its continuation lines."""
    with pytest.raises(SystemExit) as end:
        parse_flags(command, "a.program", words)
    assert end.value.code == 0
    found: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  --"):
            flag, _, rest = line.strip().partition(" ")
            found[flag] = rest
        elif line.startswith("     ") and found:
            found[flag] += " " + line.strip()
    return found


def test_help_shows_the_contracts_flags_and_the_long_one_all(capsys: Printed) -> None:
    short, whole = lines_of(["--help"], capsys), lines_of(["--help-all"], capsys)
    contract = {f"--{name}" for name in CONTRACT | OF_THE_COMMAND}
    assert contract <= set(short) < set(whole)
    assert tuple(short)[: len(Train.first_flags)] == tuple(f"--{name}" for name in Train.first_flags)
    assert {f"--{setting.name}" for setting in settings_of(Train)} <= set(whole)


@pytest.mark.parametrize("word", ["--help", "--help-all"])
def test_values_of_the_help_are_those_that_the_run_would_have(
    word: str, capsys: Printed, tmp_path: Path
) -> None:
    assert lines_of([word], capsys)["--bank.size"].endswith("(100)")
    of_mnist = lines_of([word, "--preset", "mnist_cpu"], capsys)
    assert of_mnist["--bank.size"].endswith("(50)")
    assert of_mnist["--prior.images"].endswith("(40000)")
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"bank": {"size": 7}}))
    assert lines_of(["--config", str(file), word], capsys)["--bank.size"].endswith("(7)")
    with pytest.raises(UserError, match="did you mean digits"):
        parse_flags(Train, "a.program", ["--preset", "digit", word])


def test_only_given_flags_are_returned() -> None:
    assert parse_flags(Train, "npdraw_dist.train", []) == {}
    argv = ["--prior.depth", "8", "--parse.order=raster", "--seed", "3", "--scale.use_gpu", "false"]
    flags = parse_flags(Train, "npdraw_dist.train", argv)
    experiment = build(flags)
    assert set(flags) == {"prior", "parse", "seed", "scale"}
    assert (experiment.prior.depth, experiment.parse.order, experiment.seed) == (8, "raster", 3)
    assert experiment.scale.use_gpu is False


@pytest.mark.parametrize(
    ("command", "spellings"),
    [
        (Sample, ["--use_gpu", "--use-gpu", "--use_gpu true", "--use-gpu=true"]),
        (Train, ["--scale.use_gpu", "--scale.use-gpu", "--scale.use_gpu true"]),
        (Train, ["--scale.use-gpu false", "--no-scale.use_gpu", "--scale.use_gpu=false"]),
        (Fit, ["--image-size 32", "--image_size 32", "--image_size=32"]),
        (Sweep, ["--num-samples 2", "--num_samples 2"]),
        (Train, ["--data.image_size 32", "--data.image-size 32"]),
        (Train, ["--dry-run", "--dry_run", "--dry-run true"]),
        (Evaluate, ["--fid-weights a", "--fid_weights a"]),
        (Edit, ["--interpolate", "--interpolate true"]),
    ],
)
def test_spellings_of_a_flag(command: type, spellings: list[str]) -> None:
    first, *others = (parse_flags(command, "a.program", words.split()) for words in spellings)
    assert all(other == first for other in others)
    assert first


@pytest.mark.parametrize("name", COMMANDS)
def test_help_writes_a_commands_own_flags_with_dashes_and_settings_as_in_the_file(
    name: str, capsys: Printed
) -> None:
    for flag in lines_of(["--help-all"], capsys, resolve_name(COMMANDS[name].flags)):
        assert ("-" not in flag[2:]) if "." in flag else ("_" not in flag)


@pytest.mark.parametrize("words", HINTS)
def test_the_flags_of_other_programs_are_answered_with_flags_that_exist(words: str) -> None:
    said = set()
    for word in words.split():
        for entry in COMMANDS.values():
            command = resolve_name(entry.flags)
            known = {setting.name for setting in settings_of(command)}
            if word.replace("_", "-") in known | {name.partition(".")[0] for name in known}:
                continue
            with pytest.raises(UserError, match=f"unknown flag --{word}") as caught:
                parse_flags(command, "a.program", [f"--{word}=1"])
            said.add(str(caught.value).partition("; ")[2])
            assert set(re.findall(r"--([\w.-]+)", str(caught.value))) <= known | {word}
    assert said - {""} == set(HINTS[words])


def test_quiet_and_verbose_are_of_every_command(capsys: Printed) -> None:
    from npdraw_dist.pipeline.progress import console, results, stage_progress

    assert parse_flags(Train, "a.program", ["--quiet", "--seed", "3"]) == {"seed": "3"}
    assert process.is_quiet()
    with stage_progress("bank", 3) as show:
        show(3)
    console.print("a decision")
    results.print("a warning")
    assert capsys.readouterr().out == "a warning\n"
    parse_flags(Sample, "a.program", ["--verbose"])
    assert (process.is_quiet(), process.is_verbose()) == (False, True)
    parse_flags(Sample, "a.program", [])
    assert (process.is_quiet(), process.is_verbose()) == (False, False)
    console.print("a decision")
    assert capsys.readouterr().out == "a decision\n"
    with pytest.raises(UserError, match="give --quiet or --verbose, not both"):
        parse_flags(Sample, "a.program", ["--quiet", "--verbose"])


def test_dry_run_prints_the_resolved_config(capsys: Printed) -> None:
    main(["--dry-run", "--preset", "mnist", "--prior.depth", "8", "--bank.size", "32"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert build(values).prior.depth == 8
    assert (values["bank"]["size"], values["data"]["source"]) == (32, "mnist")
    assert set(values) == set(Experiment.model_fields)


def test_stages_keep_the_pipelines_order() -> None:
    assert chosen_stages("vae, bank") == ["bank", "vae"]


def test_defaults_are_not_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"N": "3", "SEED": "7", "temperature": "-1", "DATA": "x"}.items():
        monkeypatch.setenv(name, value)
    command = validate(Sample, {"model": "m", "out": "o"})
    assert (command.n, command.seed, command.temperature) == (64, 0, None)


def test_run_command_turns_errors_into_statuses(monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])

    def status(error: BaseException | None) -> object:
        def command(argv: Sequence[str]) -> None:
            if error is not None:
                raise error

        with pytest.raises(SystemExit) as caught:
            run_command(command)
        return caught.value.code

    assert status(None) == 0
    assert status(UserError("first\n  second")) == 2
    assert capsys.readouterr().err == "error: first second\n"
    assert status(StorageFailed("gone")) == 75
    assert capsys.readouterr().err == "error: gone\n"
    assert status(KeyboardInterrupt()) == 130
    assert status(RuntimeError("ours")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_npdraw_is_installed_and_passes_on_flags_and_mistakes() -> None:
    (installed,) = entry_points(group="console_scripts", name="npdraw")
    assert installed.value == "npdraw_dist.__main__:main"
    assert npdraw("--version").stdout == f"npdraw {__version__}\n"
    assert all(f"\n  {name} " in npdraw("--help").stdout for name in COMMANDS)
    unknown = npdraw("tarin")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert unknown.stderr.startswith("error: unknown command 'tarin'; did you mean train?")
    wrong = npdraw("train", "--bank.size", "x")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("error: bank.size: ")


def test_helps_and_a_dry_run_import_nothing_that_computes() -> None:
    """Then they print within a second."""
    code = (
        "import runpy, sys\n"
        f"for name in {list(COMMANDS)}:\n"
        "    sys.argv = ['npdraw', name, '--help']\n"
        "    print('\\f' + name)\n"
        "    try:\n        runpy.run_module('npdraw_dist', run_name='__main__')\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "from npdraw_dist.train import main\n"
        "print('\\f')\n"
        "main(['--dry-run'])\n"
        "slow = {'torch', 'ray', 'pyarrow', 'scipy', 'sklearn', 'matplotlib', 'faiss', 'numpy'}\n"
        "print('\\f' + str(sorted(slow & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *helps, dry_run, last = done.stdout.split("\f")[1:]
    assert last == "[]\n"
    for name, text in zip(COMMANDS, helps, strict=True):
        assert text.startswith(f"{name}\nusage: npdraw {name} [--FLAG VALUE ...]\n")
    assert yaml.safe_load(dry_run)["data"]["source"] == "digits"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_class_of_the_flags_is_the_commands_own(name: str) -> None:
    command = resolve_name(COMMANDS[name].flags)
    assert issubclass(command, Command)
    known = {setting.name for setting in settings_of(command)}
    assert {*command.first_flags, *command.main_flags} <= known
    for example in command.examples:
        assert {word.lstrip("-") for word in example.split() if word.startswith("--")} <= known


def test_the_script_of_the_shell_knows_commands_flags_and_choices(tmp_path: Path) -> None:
    script = tmp_path / "npdraw.bash"
    script.write_text(npdraw("print-shell-setup", "bash").stdout)
    ask = (
        f"source {script}\n"
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        '$(complete -p npdraw | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"; }\n'
        "try npdraw tr\ntry npdraw train --prior.de\ntry npdraw train --parse.order ra\n"
        "try npdraw train --preset dig\n"
    )
    found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == ["train train-extractor", "--prior.depth", "raster ranked", "digits"]


@pytest.mark.parametrize(
    ("start", "expected"), [(["-m", "shows"], "python -m shows"), (["shown.py"], "python shown.py")]
)
def test_a_command_line_can_be_typed_again(start: list[str], expected: str, tmp_path: Path) -> None:
    shown = "from npdraw_dist.system.made_by import command_line\nprint(command_line())\n"
    (tmp_path / "shown.py").write_text(shown)
    (tmp_path / "shows").mkdir()
    (tmp_path / "shows/__main__.py").write_text(shown)
    words = [sys.executable, *start, "--path", "my digits"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} --path 'my digits'\n"


def test_a_command_line_of_npdraw_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["npdraw evaluate", "--model", "runs/digits/model"])
    assert command_line() == "npdraw evaluate --model runs/digits/model"
