"""The command-line surface is frozen: what the contract names stays, what it does not is refused."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import yaml

from npdraw_dist.config.cli import parse_flags, run_command, validate
from npdraw_dist.config.help import settings_of
from npdraw_dist.config.load import build
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.sample import Sample
from npdraw_dist.train import Train, chosen_stages, main

CONTRACT = [
    "bank.max_patches",
    "bank.shards",
    "bank.size",
    "data.cache_mb",
    "data.fraction",
    "data.max_bad_fraction",
    "data.path",
    "data.source",
    "grid.patch",
    "grid.stride",
    "model.kind",
    "parse.order",
    "parse.steps",
    "prior.attention_heads",
    "prior.depth",
    "prior.heads",
    "prior.images",
    "prior.width",
    "scale.num_workers",
    "scale.use_gpu",
    "seed",
    "train.batch_size",
    "vae.images",
]
COMMAND = ["config", "dry-run", "name", "preset", "stages", "storage"]


def test_the_contracts_names_are_settings() -> None:
    assert sorted(CONTRACT) == CONTRACT
    assert set(CONTRACT) <= {setting.name for setting in settings_of(Experiment)}


def test_help_shows_every_flag_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_flags(Train, "npdraw_dist.train", ["--help"])
    assert caught.value.code == 0
    words = set(capsys.readouterr().out.replace(",", " ").replace("[", " ").split())
    assert {f"--{name}" for name in CONTRACT + COMMAND} - words == set()


def test_only_given_flags_are_returned() -> None:
    assert parse_flags(Train, "npdraw_dist.train", []) == {}
    argv = ["--prior.depth", "8", "--parse.order=raster", "--seed", "3", "--scale.use_gpu", "false"]
    flags = parse_flags(Train, "npdraw_dist.train", argv)
    experiment = build(flags)
    assert set(flags) == {"prior", "parse", "seed", "scale"}
    assert (experiment.prior.depth, experiment.parse.order, experiment.seed) == (8, "raster", 3)
    assert experiment.scale.use_gpu is False


def test_dry_run_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--dry-run", "--preset", "mnist", "--prior.depth", "8", "--bank.size", "32"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert build(values).prior.depth == 8
    assert values["bank"]["size"] == 32
    assert values["data"]["source"] == "mnist"
    assert set(values) == set(Experiment.model_fields)


def test_a_dry_run_imports_nothing_that_computes() -> None:
    """So it takes as long as the help."""
    code = "import sys; from npdraw_dist.train import main; main(sys.argv[1:]); print(*sys.modules)"
    words = [sys.executable, "-c", code, "--dry-run", "--preset", "celeba", "--vae.images", "9"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    shown, _, modules = done.stdout.rstrip().rpartition("\n")
    assert yaml.safe_load(shown)["vae"]["images"] == 9
    assert {"torch", "numpy", "pyarrow", "ray", "huggingface_hub"}.isdisjoint(modules.split())


def test_stages_keep_the_pipelines_order() -> None:
    assert chosen_stages("vae, bank") == ["bank", "vae"]


def test_missing_and_impossible_flags_of_a_plain_command() -> None:
    with pytest.raises(UserError, match="--out is missing"):
        validate(Sample, {})
    with pytest.raises(UserError, match="--temperature"):
        validate(Sample, {"model": "m", "out": "o", "temperature": "0"})
    command = validate(Sample, {"model": "m", "out": "o"})
    assert (command.n, command.seed, command.temperature) == (64, 0, 1.0)


def test_run_command_turns_errors_into_exit_statuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert status(KeyboardInterrupt()) == 130
    assert status(RuntimeError("ours")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_command_itself_exits_2_with_one_line() -> None:
    argv = [sys.executable, "-m", "npdraw_dist.train", "--prior.dept", "3"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["error: unknown flag --prior.dept; did you mean prior.depth?"]


def test_variables_of_the_environment_are_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"N": "3", "SEED": "7", "temperature": "-1", "DATA": "x"}.items():
        monkeypatch.setenv(name, value)
    command = validate(Sample, {"model": "m", "out": "o"})
    assert (command.n, command.seed, command.temperature) == (64, 0, 1.0)
