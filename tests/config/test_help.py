"""The help of a command: what it shows, with which values, and one style of flags with the old ones."""

from pathlib import Path

import pytest
import yaml

from npdraw_dist.bench.__main__ import Bench
from npdraw_dist.config.cli import parse_flags
from npdraw_dist.config.help import settings_of
from npdraw_dist.core import process
from npdraw_dist.core.errors import UserError
from npdraw_dist.edit.__main__ import Edit
from npdraw_dist.evaluate.__main__ import Evaluate
from npdraw_dist.prepare import Prepare
from npdraw_dist.sample import Sample
from npdraw_dist.train import Train
from tune_spaces.sweep import Sweep

Printed = pytest.CaptureFixture[str]


def lines_of(words: list[str], capsys: Printed, command: type = Train) -> dict[str, str]:
    """Flag -> its line of the help, with what follows on lines of its own."""
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


def test_the_short_help_is_a_screen_or_two_and_the_long_one_has_everything(capsys: Printed) -> None:
    short = lines_of(["--help"], capsys)
    assert 30 <= len(short) <= 45
    whole = lines_of(["--help-all"], capsys)
    assert {f"--{setting.name}" for setting in settings_of(Train)} <= set(whole)
    assert set(short) < set(whole)


@pytest.mark.parametrize("word", ["--help", "--help-all"])
def test_values_are_those_that_the_run_would_have(
    word: str, capsys: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines_of([word], capsys)["--bank.size"].endswith("(100)")
    of_mnist = lines_of([word, "--preset", "mnist_cpu"], capsys)
    assert of_mnist["--bank.size"].endswith("(50)")
    assert of_mnist["--prior.images"].endswith("(83200)")
    assert lines_of(["--preset=mnist_cpu", word], capsys) == of_mnist
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"bank": {"size": 7}}))
    with_file = lines_of(["--config", str(file), word], capsys)
    assert with_file["--bank.size"].endswith("(7)")
    assert with_file["--train.batch_size"].endswith("(16)")


def test_a_value_that_only_the_run_knows_is_called_so(capsys: Printed) -> None:
    assert lines_of(["--help"], capsys, Evaluate)["--data.source"].endswith("(the run's)")
    assert lines_of(["--help"], capsys, Sweep)["--vae.images"].endswith("(the space's)")


def test_a_help_of_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        parse_flags(Train, "a.program", ["--preset", "digit", "--help"])


def test_version(capsys: Printed) -> None:
    with pytest.raises(SystemExit):
        parse_flags(Sample, "a.program", ["--version"])
    assert capsys.readouterr().out.startswith("npdraw ")


@pytest.mark.parametrize("words", ["--use_gpu", "--use-gpu", "--use_gpu true", "--use-gpu=true"])
def test_dashes_are_underscores_and_a_switch_needs_no_value(words: str) -> None:
    assert parse_flags(Sample, "a.program", words.split())["use_gpu"] == "true"


@pytest.mark.parametrize("words", ["--scale.use-gpu false", "--no-scale.use_gpu", "--scale.use_gpu=false"])
def test_a_switch_is_turned_off(words: str) -> None:
    assert parse_flags(Train, "a.program", words.split()) == {"scale": {"use_gpu": "false"}}


def test_old_spellings_are_the_same_flags() -> None:
    def same(command: type, *spellings: str) -> None:
        first, *others = (parse_flags(command, "a.program", words.split()) for words in spellings)
        assert all(other == first for other in others)
        assert first

    same(Train, "--dry-run", "--dry_run", "--dry-run true")
    same(Evaluate, "--fid-weights a", "--fid_weights a")
    same(Sweep, "--num-samples 3", "--num_samples 3")
    same(Edit, "--interpolate", "--interpolate true")
    same(Prepare, "--data.image-size 3", "--data.image_size 3")
    same(Bench, "--train.batch-size 3", "--train.batch_size 3")


def test_quiet_and_verbose_are_of_every_command() -> None:
    assert parse_flags(Train, "a.program", ["--quiet", "--seed", "3"]) == {"seed": "3"}
    assert process.is_quiet()
    parse_flags(Sample, "a.program", ["--verbose"])
    assert (process.is_quiet(), process.is_verbose()) == (False, True)
    parse_flags(Sample, "a.program", [])
    assert (process.is_quiet(), process.is_verbose()) == (False, False)
    with pytest.raises(UserError, match="give one of them"):
        parse_flags(Sample, "a.program", ["--quiet", "--verbose"])


def test_quiet_keeps_results_and_warnings(capsys: Printed) -> None:
    from npdraw_dist.pipeline.progress import console, results, stage_progress

    parse_flags(Sample, "a.program", ["--quiet"])
    with stage_progress("bank", 3) as show:
        show(3)
    console.print("a decision")
    results.print("a warning")
    assert capsys.readouterr().out == "a warning\n"
    parse_flags(Sample, "a.program", [])
    console.print("a decision")
    assert capsys.readouterr().out == "a decision\n"
