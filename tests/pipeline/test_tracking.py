"""`--track wandb|mlflow`, offline: no service is asked."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline import prior, tracking
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.tracking import tracked
from npdraw_dist.training.metrics_log import RECENT_ROWS, read_metrics
from tests.helpers.runs import HERE, TINY, random_parses, tiny


def experiment() -> Experiment:
    return with_changes(tiny(), {"scale": {"num_workers": 0}})


def train_tracked(store: Store, service: str) -> list[dict[str, float]]:
    """The stage `prior` as a command does it; returns its rows of both kinds."""
    asked = experiment()
    with tracked(asked, store, service):
        prior.run(asked, store)
    where = store.filesystem, store.path("prior")
    return [*read_metrics(*where), *read_metrics(*where, RECENT_ROWS)]


class Recorder:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.ended: list[tuple[dict[str, Any], bool]] = []
        self.fails = False

    def log(self, values: Mapping[str, float], images_seen: int, stage: str) -> None:
        self.rows.append((stage, images_seen, dict(values)))
        if self.fails:
            raise ConnectionError("no  answer")

    def finish(self, numbers: Mapping[str, Any], failed: bool) -> None:
        self.ended.append((dict(numbers), failed))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(tracking, "_Wandb", lambda experiment, store: made)
    return made


def test_a_tracker_gets_each_row_once(tmp_path: Path, recorder: Recorder) -> None:
    store = random_parses(tmp_path)
    rows = train_tracked(store, "wandb")
    sent = {(images_seen, *sorted(values)) for _, images_seen, values in recorder.rows}
    assert len(recorder.rows) == len(rows) == len(sent) == 6
    by_images = {images: values for _, images, values in recorder.rows if "valid/nll" in values}
    assert by_images == {
        int(row["images_seen"]): {k: v for k, v in row.items() if k not in ("images_seen", "step")}
        for row in rows
        if "valid/nll" in row
    }
    assert {stage for stage, _, _ in recorder.rows} == {"prior"}
    assert recorder.ended == [({}, False)]
    assert store.tracked is None


def test_a_run_that_fails_ends_as_failed(tmp_path: Path, recorder: Recorder) -> None:
    store = random_parses(tmp_path)
    with pytest.raises(ZeroDivisionError), tracked(experiment(), store, "wandb"):
        raise ZeroDivisionError
    assert recorder.ended == [({}, True)]


def test_a_service_that_fails_is_reported_once(
    tmp_path: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.fails = True
    store = random_parses(tmp_path)
    with tracked(experiment(), store, "wandb"):
        for step in (1, 2):
            assert store.tracked is not None
            store.tracked({"images_seen": 16, "step": step, "valid/nll": 3.0}, "prior")
    assert capsys.readouterr().out == "tracking ends: no answer\n"
    assert len(recorder.rows) == 1
    assert recorder.ended == []


def test_a_package_that_is_not_there_is_told_first(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npdraw_dist.core.process.is_there", lambda name: False)
    error = refused(train.main, "--storage", str(tmp_path), *TINY, *HERE, "--track", "mlflow")
    assert "--track mlflow needs npdraw_dist[mlflow]: pip install 'npdraw_dist[mlflow]'" in error
    assert not list(tmp_path.iterdir())


def test_a_service_that_refuses_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("wandb")

    def init(**settings: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    fake.init, fake.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    store = random_parses(tmp_path)
    with (
        pytest.raises(UserError, match="--track wandb cannot start: no API key configured"),
        tracked(experiment(), store, "wandb"),
    ):
        pytest.fail("the block does not begin")


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its file store, in a folder."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # from 3 on it warns, or wants this
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())


def test_mlflow_keeps_losses_and_settings(tmp_path: Path, mlflow: Any) -> None:
    """A resumed run goes on in the same run there."""
    store = random_parses(tmp_path / "run")
    rows = train_tracked(store, "mlflow")
    store.write_json({"valid/nll": 3.5, "fingerprint": "abc", "ok": True}, "metrics.json")
    Path(store.path("prior", "manifest.json")).unlink()
    train_tracked(store, "mlflow")
    (group,) = [found for found in mlflow.search_experiments() if found.name == "npdraw_dist"]
    (found,) = mlflow.search_runs([group.experiment_id])
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
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
