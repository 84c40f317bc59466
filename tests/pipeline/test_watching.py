"""What a person sees of a run: progress with losses, a line a validation, training.jsonl, log.txt."""

import io
import json
import math
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import fs
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline import prior, progress, stage_job
from npdraw_dist.pipeline.progress import console, logged, stage_progress
from npdraw_dist.pipeline.stage_job import painter
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.loop import Run
from npdraw_dist.training.metrics_log import RECENT_ROWS, read_metrics
from tests.helpers.runs import HERE, TINY, random_parses, tiny
from tests.helpers.tiny_presets import bank_of, batch_of, objective_of, tiny_preset


def experiment(**train: Any) -> Experiment:
    return with_changes(tiny(), {"scale": {"num_workers": 0}, "train": train})


def store_with_bank(run: Path, folder: Path) -> Store:
    shutil.copytree(run, folder / "run")
    shutil.rmtree(folder / "run" / "prior")
    return Store.open(str(folder), "run")


def bank_experiment(store: Store) -> Experiment:
    return with_changes(store.config(), {"scale": {"num_workers": 0}})


def rows_of(store: Store, rows: str) -> list[dict[str, float]]:
    return read_metrics(store.filesystem, store.path("prior"), rows)


def test_a_validation_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = random_parses(tmp_path)
    prior.run(experiment(), store)
    printed = capsys.readouterr().out
    for row in rows_of(store, "metrics"):
        line = f"prior: after {row['images_seen']:,} images: loss {row['train/loss']:.2f}, validation nll "
        assert f"{line}{row['valid/nll']:.2f}" in printed


def test_a_validation_below_the_best_names_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = random_parses(tmp_path)
    asked = with_changes(experiment(eval_every_images=128, patience=0), {"prior": {"learning_rate": 3.0}})
    prior.run(asked, store)
    values = [row["valid/nll"] for row in rows_of(store, "metrics")]
    assert values[-1] > min(values)
    assert f"validation nll {values[-1]:.2f} (best {min(values):.2f})" in capsys.readouterr().out


def test_progress_says_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr("npdraw_dist.training.context.SHOW_EVERY_S", -1.0)
    prior.run(experiment(), random_parses(tmp_path))
    printed = capsys.readouterr().out
    assert re.search(r"^prior: 128/512 images, [\d,]+/s, \d+ s left, loss \d+\.\d\d$", printed, re.M)
    assert re.search(r"^prior: 384/512 .* loss \d+\.\d\d, validation nll \d+\.\d\d$", printed, re.M)


def test_the_bar_says_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(progress.LoggedConsole, "sink", shown.append)
    with console.capture() as printed, stage_progress("prior", 1000) as show:
        show(500, 250.0, "loss 3.25, validation nll 3.10")
    assert "loss 3.25, validation nll 3.10" in printed.get()
    # The log has no bar.
    assert shown == [
        "prior: started (1,000 images)",
        "prior: 500/1,000 images, 250/s, 2 s left, loss 3.25, validation nll 3.10",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_without_a_known_total(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Only reading tells how many images a set of fonts has."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr(console, "_force_terminal", terminal)
    with console.capture() as printed, stage_progress("prepare", 0) as show:
        show(62_314, 1514.0)
    assert "62,314 images, 1,514/s" in printed.get()
    assert "left" not in printed.get()
    assert "/0" not in printed.get()


def test_losses_between_validations_add_up(tmp_path: Path) -> None:
    """Each row is of the images since the one before, and a validation's mean is of its rows."""
    store = random_parses(tmp_path)
    prior.run(experiment(), store)
    recent, validated = rows_of(store, RECENT_ROWS), rows_of(store, "metrics")
    assert [row["images_seen"] for row in recent] == [128, 256, 384, 512]
    for pair, row in zip((recent[:2], recent[2:]), validated, strict=True):
        assert sum(item["recent/loss"] for item in pair) / 2 == pytest.approx(row["train/loss"])
        assert pair[0]["recent/loss"] != pair[1]["recent/loss"]
    found = EventAccumulator(str(tmp_path / "prior")).Reload()
    assert [event.step for event in found.Scalars("recent/loss")] == [128, 256, 384, 512]
    assert [event.step for event in found.Scalars("valid/nll")] == [256, 512]


def test_pictures_of_a_prior(run_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bank at once, samples and parses at validations; they change no result."""
    stores = [store_with_bank(run_here, tmp_path / name) for name in ("with", "without")]
    monkeypatch.setattr(stage_job, "PICTURED", 4)
    manifests = [prior.run(bank_experiment(stores[0]), stores[0])]
    monkeypatch.setattr("npdraw_dist.pipeline.stage_job.painter", lambda *_: None)
    manifests.append(prior.run(bank_experiment(stores[1]), stores[1]))
    states = [
        Path(store.path("prior", manifest["checkpoint"], "state.safetensors")).read_bytes()
        for store, manifest in zip(stores, manifests, strict=True)
    ]
    assert states[0] == states[1]
    found = EventAccumulator(stores[0].path("prior"), size_guidance={"images": 0}).Reload()
    assert set(found.Tags()["images"]) == {"bank", "samples", "parses"}
    assert [image.step for image in found.Images("samples")] == [256, 512]
    image = Image.open(io.BytesIO(found.Images("samples")[0].encoded_image_string))
    assert image.size == (4 * 29 + 1, 29 + 1)


@pytest.mark.parametrize("kind", ["npdraw", "vae"])
def test_pictures_of_a_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_preset("digits", kind)
    objective, batch = objective_of(experiment, "vae"), batch_of(experiment, 3)
    bank = bank_of(experiment) if kind == "npdraw" else None
    monkeypatch.setattr(stage_job, "PICTURED", 3)
    paint = painter(experiment, bank)
    assert paint is not None
    with torch.no_grad():
        found = paint(objective.eval(), batch, torch.Generator().manual_seed(0))
    assert found["samples"].shape == (3, 30, 3 * 29 + 1)  # three channels
    assert set(found) == ({"samples", "reconstructions"} if kind == "npdraw" else {"samples"})
    if kind == "npdraw":
        assert found["reconstructions"].shape == (3, 30, 6 * 29 + 1)
    assert painter(with_changes(experiment, {"train": {"compile": True}}), bank) is None


@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_pictures_where_no_image_is_for_validation(stage: str) -> None:
    experiment = tiny_preset("digits", "npdraw")
    paint = painter(experiment, bank_of(experiment))
    assert paint is not None
    none = batch_of(experiment, 3)[:0]
    with torch.no_grad():
        found = paint(objective_of(experiment, stage).eval(), none, torch.Generator().manual_seed(0))
    assert set(found) == {"samples"}


class Killed(Exception):
    pass


def test_a_resumed_stage_goes_on_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = random_parses(tmp_path / "whole"), random_parses(tmp_path / "killed")
    prior.run(experiment(), whole)
    original = Run.update

    def die_at_three(self: Run, step: int, *rest: Any) -> None:
        if step == 3:
            raise Killed
        original(self, step, *rest)

    monkeypatch.setattr(Run, "update", die_at_three)
    with pytest.raises(Killed):
        prior.run(experiment(), killed)
    monkeypatch.setattr(Run, "update", original)
    assert len(rows_of(killed, RECENT_ROWS)) == 3
    prior.run(experiment(), killed)
    losses = [[row["recent/loss"] for row in rows_of(store, RECENT_ROWS)] for store in (whole, killed)]
    assert losses[0] == losses[1]


def test_a_run_keeps_what_it_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--storage", str(tmp_path), "--name", "said", *TINY, *HERE]
    train.main([*command, "--stages", "bank,parse,prior"])
    first = (tmp_path / "said" / "log.txt").read_text()
    printed = capsys.readouterr().out
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for line in printed.splitlines():
        if re.match(r"(bank|parse|prior): ", line):
            assert re.search(rf"^{stamp}  {re.escape(line.rstrip())}$", first, re.M), line
    assert "validation NLL" in first  # of the table
    assert "\x1b" not in first
    (tmp_path / "said" / "prior" / "manifest.json").unlink()
    train.main([*command, "--stages", "prior"])
    again = (tmp_path / "said" / "log.txt").read_text()
    assert again.startswith(first)
    assert "prior: resumes from checkpoint_000000004" in again
    assert progress.LoggedConsole.sink is None


@pytest.mark.parametrize("local", [True, False])
def test_the_log_has_the_error_that_ended_a_run(tmp_path: Path, local: bool) -> None:
    where = str(tmp_path) if local else f"memory://{uuid.uuid4().hex}"
    store = Store.open(where, "run")
    store.make_folder()
    table = Table("stage", "numbers")
    table.add_row("prior", "NLL 3.5")

    def say_and_fail() -> None:
        console.print("[bold red]first[/] line")
        console.print(table)
        raise UserError("no such thing")

    with pytest.raises(UserError), logged(store):
        say_and_fail()
    with pytest.raises(ZeroDivisionError), logged(store):
        math.log(1 / 0)
    with store.filesystem.open_input_stream(store.path("log.txt")) as file:
        text = file.read().decode()
    assert text.splitlines()[0][21:] == "first line"
    assert re.search(r"│ prior │ .*3\.5", text)
    assert "  error: no such thing\n" in text
    assert "ZeroDivisionError" in text


def test_a_refused_run_leaves_no_log(tmp_path: Path, refused: Any) -> None:
    command = ["--storage", str(tmp_path), "--name", "none", *TINY, *HERE, "--bank.min_energy", "1"]
    refused(train.main, *command, "--data.fraction", "0.01")
    assert not (tmp_path / "none").exists()


def test_metrics_stay_as_they_were(tmp_path: Path) -> None:
    """Rows of metrics.jsonl, which other code reads, have validations alone."""
    store = random_parses(tmp_path)
    prior.run(experiment(), store)
    text = Path(store.path("prior", "metrics.jsonl")).read_text()
    names = set().union(*(json.loads(line) for line in text.splitlines()))
    assert not [name for name in names if name.startswith("recent")]
    assert isinstance(store.filesystem, fs.LocalFileSystem)
