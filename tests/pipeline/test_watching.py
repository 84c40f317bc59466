"""What a user sees of a run: progress, losses, pictures, log.txt and trackers; no test uses a network."""

import io
import json
import math
import re
import shutil
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from PIL import Image
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.pipeline import prior, progress, stage_job, tracking
from npdraw_dist.pipeline.progress import console, logged, stage_progress
from npdraw_dist.pipeline.stage import Watch
from npdraw_dist.pipeline.stage_job import painter
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.tracking import tracked
from npdraw_dist.pipeline.train_stage import StageDisplay
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.metrics_log import RECENT_ROWS, read_metrics
from tests.helpers.runs import IN_PROCESS, TINY, random_parses, tiny
from tests.helpers.tiny_presets import bank_of, batch_of, objective_of, tiny_preset

EXPERIMENT = with_changes(tiny(), {"scale": {"num_workers": 0}})


def test_a_training_prints_and_stores_its_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row has the loss since the row before; a validation's loss is the mean of the rows before it."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr("npdraw_dist.training.context.SHOW_EVERY_S", -1.0)
    store = random_parses(tmp_path)
    prior.run(EXPERIMENT, store)
    recent, validated = (
        read_metrics(store.filesystem, store.path("prior"), rows) for rows in (RECENT_ROWS, "metrics")
    )
    printed = capsys.readouterr().out
    assert re.search(r"^prior: 384/512 images, .* loss \d+\.\d\d, validation nll \d+\.\d\d$", printed, re.M)
    assert [row["images_seen"] for row in recent] == [128, 256, 384, 512]
    for pair, row in zip((recent[:2], recent[2:]), validated, strict=True):
        assert sum(item["recent/loss"] for item in pair) / 2 == pytest.approx(row["train/loss"])
        assert pair[0]["recent/loss"] != pair[1]["recent/loss"]
        assert f": loss {row['train/loss']:.2f}, validation nll {row['valid/nll']:.2f}" in printed
        assert not [name for name in row if name.startswith("recent")]  # other code reads metrics.jsonl
    found = EventAccumulator(str(tmp_path / "prior")).Reload()
    assert [event.step for event in found.Scalars("recent/loss")] == [128, 256, 384, 512]
    assert [event.step for event in found.Scalars("valid/nll")] == [256, 512]


@pytest.mark.parametrize("total", [1000, 0])  # 0: the number of images is not known before they are read
def test_the_log_has_lines_where_a_terminal_has_a_bar(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(progress.LoggedConsole, "to_log", shown.append)
    with console.capture() as printed, stage_progress("prior", total) as show:
        show(500, 250.0, "loss 3.25")
    assert "loss 3.25" in printed.get()
    _, line = shown
    assert line.startswith("prior: 500/1,000 images, " if total else "prior: 500 images, ")
    assert line.endswith("250/s, 2 s left, loss 3.25" if total else "250/s, loss 3.25")


def test_pictures_of_a_prior(run_in_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They show the bank at the start, samples and parses at validations, and change no result."""
    stores, states = [], []
    monkeypatch.setattr(stage_job, "PICTURED", 4)
    for name, paint in (("with", painter), ("without", lambda *_: None)):
        shutil.copytree(run_in_process, tmp_path / name)
        shutil.rmtree(tmp_path / name / "prior")
        monkeypatch.setattr(stage_job, "painter", paint)
        stores.append(Store.open(str(tmp_path), name))
        manifest = prior.run(with_changes(stores[-1].config(), {"scale": {"num_workers": 0}}), stores[-1])
        state = stores[-1].path("prior", manifest["checkpoint"], "state.safetensors")
        states.append(Path(state).read_bytes())
    assert states[0] == states[1]
    found = EventAccumulator(stores[0].path("prior"), size_guidance={"images": 0}).Reload()
    assert set(found.Tags()["images"]) == {"bank", "samples", "parses"}
    assert [image.step for image in found.Images("samples")] == [256, 512]
    image = Image.open(io.BytesIO(found.Images("samples")[0].encoded_image_string))
    assert image.size == (4 * 29 + 1, 29 + 1)


def test_pictures_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_preset("digits", "npdraw")
    objective, batch = objective_of(experiment, "vae").eval(), batch_of(experiment, 3)
    bank = bank_of(experiment)
    monkeypatch.setattr(stage_job, "PICTURED", 3)
    paint = painter(experiment, bank)
    assert paint is not None
    with torch.no_grad():
        found = paint(objective, batch, torch.Generator().manual_seed(0))
        of_none = paint(objective, batch[:0], torch.Generator().manual_seed(0))
    assert found["samples"].shape == (3, 30, 3 * 29 + 1)  # three channels
    assert found["reconstructions"].shape == (3, 30, 6 * 29 + 1)
    assert set(of_none) == {"samples"}  # no image is for validation
    assert painter(experiment, None) is None


def test_the_log_has_what_the_console_showed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--storage", str(tmp_path), "--name", "said", *TINY, *IN_PROCESS, "--data.fraction", "0.05"]
    train.main([*command, "--stages", "data,bank,parse,prior"])
    first = (tmp_path / "said" / "log.txt").read_text()
    stages = re.compile(r"(data|bank|parse|prior): ")
    lines = [line for line in capsys.readouterr().out.splitlines() if stages.match(line)]
    assert lines
    for line in lines:
        assert re.search(rf"^20[-\d]+ [:\d]+  {re.escape(line.rstrip())}$", first, re.M), line
    assert "\x1b" not in first
    (tmp_path / "said" / "prior" / "manifest.json").unlink()
    train.main([*command, "--stages", "prior"])
    again = (tmp_path / "said" / "log.txt").read_text()
    assert again.startswith(first)
    assert "prior: resumes from checkpoint_000000004" in again
    assert progress.LoggedConsole.to_log is None


def test_the_log_has_the_error_that_ended_a_run() -> None:
    store = Store.open(f"memory://{uuid.uuid4().hex}", "run")
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
    for said in ("│ prior │ ", "  error: no such thing\n", "ZeroDivisionError"):
        assert said in text


def test_a_line_that_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "no [/tmp/x] there, [red]text[/red], [../gloo/pair.cc:1] closed"
    StageDisplay("prior", Mock(), Watch()).say(line)
    assert " ".join(capsys.readouterr().out.split()) == f"prior: {line}"


def train_tracked(store: Store, service: str) -> list[dict[str, float]]:
    """Trains the stage `prior` with a tracker; returns the rows of both its files."""
    with tracked(EXPERIMENT, store, service) as watcher:
        prior.run(EXPERIMENT, store, Watch([watcher]))
    where = store.filesystem, store.path("prior")
    return [*read_metrics(*where), *read_metrics(*where, RECENT_ROWS)]


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Mock:
    made = Mock(id="one")
    monkeypatch.setattr(tracking, "_Wandb", lambda *_: made)
    return made


def test_a_tracker_gets_each_row_once(tmp_path: Path, tracker: Mock) -> None:
    store = random_parses(tmp_path)
    rows = train_tracked(store, "wandb")
    logged_rows = [made.args for made in tracker.log.call_args_list]
    sent = {(images_seen, *sorted(values)) for values, images_seen, _ in logged_rows}
    assert len(logged_rows) == len(rows) == len(sent) == 6
    given = [{**values, "images_seen": images} for values, images, _ in logged_rows]
    for row in rows:
        assert {name: value for name, value in row.items() if name != "step"} in given
    assert tracker.finish.call_args_list == [call({}, False)]
    with pytest.raises(ZeroDivisionError), tracked(EXPERIMENT, store, "wandb"):
        raise ZeroDivisionError
    assert tracker.finish.call_args_list[1:] == [call({}, True)]


def test_a_service_that_fails_is_reported_once(
    tmp_path: Path, tracker: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.log.side_effect = ConnectionError("no  answer")
    with tracked(EXPERIMENT, Store.open(str(tmp_path), "run"), "wandb") as watcher:
        for step in (1, 2):
            watcher({"images_seen": 16, "step": step, "valid/nll": 3.0}, "prior")
    assert capsys.readouterr().out.count("no answer") == 1
    tracker.log.assert_called_once()
    tracker.finish.assert_not_called()


def test_a_missing_package_or_a_service_that_refuses_gives_one_line(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("npdraw_dist.system.process.is_there", lambda name: False)
        error = refused(train.main, "--storage", str(tmp_path), *TINY, *IN_PROCESS, "--track", "mlflow")
    assert "--track mlflow needs npdraw_dist[mlflow]" in error
    assert not list(tmp_path.iterdir())

    init = Mock(side_effect=RuntimeError("no API key\nconfigured"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    with (
        pytest.raises(UserError, match="no API key configured"),
        tracked(EXPERIMENT, Store.open(str(tmp_path), "x"), "wandb"),
    ):
        pytest.fail("the block does not begin")


@pytest.mark.slow
def test_mlflow_keeps_losses_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run continues in MLflow's same run."""
    uri = (tmp_path / "mlruns").as_uri()
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # from 3 on it warns, or wants this
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow = client(tracking_uri=uri)
    store = random_parses(tmp_path / "run")
    rows = train_tracked(store, "mlflow")
    store.write_json({"valid/nll": 3.5, "fingerprint": "abc", "ok": True}, "metrics.json")
    Path(store.path("prior", "manifest.json")).unlink()
    train_tracked(store, "mlflow")
    (group,) = [found for found in mlflow.search_experiments() if found.name == "npdraw_dist"]
    (found,) = mlflow.search_runs([group.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["prior.width"] == "16"
    assert found.data.metrics["valid/nll"] == 3.5
    assert "fingerprint" not in found.data.metrics
    history = {
        item.step: item.value for item in mlflow.get_metric_history(found.info.run_id, "prior/valid/nll")
    }
    assert history == {int(row["images_seen"]): row["valid/nll"] for row in rows if "valid/nll" in row}


@pytest.mark.slow
def test_wandb_keeps_losses_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = random_parses(tmp_path / "run")
    train_tracked(store, "wandb")
    known = json.loads((tmp_path / "run" / "tracking.json").read_text())["wandb"]
    (kept,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb")
    texts = (b"prior/valid/nll", b"prior/recent/loss", b"prior/images_seen", b"attention_heads")
    # wandb's own process writes the file, and ends a moment after `finish` has returned.
    deadline = time.monotonic() + 60
    while missing := [text for text in texts if text not in kept.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)
