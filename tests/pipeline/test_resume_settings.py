"""Settings that change no result do not refuse a resume: fingerprints stay, and the work is as asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline import train_stage
from npdraw_dist.pipeline.inputs import claim
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.training import cluster, launch
from npdraw_dist.training.workers import Workers

RUN = Experiment.model_validate({"train": {"eval_every_images": 512, "select": "last"}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path), "run")
    claim(RUN, store)
    return store


def changed(**train: Any) -> Experiment:
    return with_changes(RUN, {"train": train})


CHANGES: list[dict[str, Any]] = [
    {"compile": True},
    {"precision": "float32"},
    {"eval_every_images": 1024},
    {"micro_batch": 32},
    {"compile": True, "precision": "bfloat16", "eval_every_images": 256},
]


@pytest.mark.parametrize("train", CHANGES)
def test_a_resume_may_change_them(store: Store, train: dict[str, Any]) -> None:
    before = Path(store.path("config.yaml")).read_bytes()
    own, fresh = claim(changed(**train), store)
    assert not fresh
    assert [fingerprint_of(own, stage) for stage in RUN.stage_names] == [
        fingerprint_of(RUN, stage) for stage in RUN.stage_names
    ]
    assert store.as_asked(own) == changed(**train)
    assert Path(store.path("config.yaml")).read_bytes() == before
    # The next start without the flags does what the run did at first.
    own, _ = claim(RUN, store)
    assert store.as_asked(own) == own == RUN


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"batch_size": 256}, r"\(train\.batch_size: 128 -> 256\)"),
        ({"select": "best"}, r"\(train\.select: last -> best\)"),
        ({"compile": True, "patience": 1}, r"\(train\.patience: 3 -> 1\)"),
    ],
)
def test_others_are_refused(store: Store, train: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"another config {said}"):
        claim(changed(**train), store)


def test_where_the_best_checkpoint_is_taken_their_times_count(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "best")
    claim(changed(select="best"), store)
    claim(changed(select="best", compile=True), store)
    with pytest.raises(UserError, match=r"\(train\.eval_every_images: 512 -> 256\)"):
        claim(changed(select="best", eval_every_images=256), store)


class Started(Exception):
    """Training would have begun."""


def start_stage(store: Store, asked: Experiment, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Runs a stage up to its training; returns the experiment of its workers."""
    jobs: list[Experiment] = []

    def make_job(experiment: Experiment, *rest: object) -> SimpleNamespace:
        jobs.append(experiment)
        assert rest[-1] == RUN.train.eval_batches * RUN.train.micro_batch  # images of a validation
        return SimpleNamespace(parses=(), images=1, experiment=experiment, stage="prior")

    def started(*_: object) -> None:
        raise Started

    monkeypatch.setattr(train_stage, "_make_job", make_job)
    monkeypatch.setattr(cluster, "plan_workers", lambda scale, reading: Workers(1, 1, 1, gpu))
    monkeypatch.setattr(launch, "run_training", started)
    own, _ = claim(asked, store)
    with pytest.raises(Started):
        train_stage.run_stage(own, store, "prior", SimpleNamespace, None)  # type: ignore[arg-type]
    return jobs[0]


def test_the_workers_do_what_is_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = changed(precision="float32", eval_every_images=256)
    assert start_stage(store, asked, False, monkeypatch) == asked


def test_another_precision_is_refused_on_a_gpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_stage(store, changed(eval_every_images=256), True, monkeypatch).train.precision == "auto"
    with pytest.raises(UserError, match=r"train\.precision: auto -> float32 changes the result on a GPU"):
        start_stage(store, changed(precision="float32"), True, monkeypatch)


def test_the_workers_take_the_micro_batch_that_is_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = start_stage(store, changed(micro_batch=32), False, monkeypatch).train
    assert (train.micro_batch, train.eval_batches) == (32, 2 * RUN.train.eval_batches)
    assert "a global batch of 128 in 4 micro-batches of 32, at most 4 a worker" in capsys.readouterr().out


def test_a_micro_batch_is_lowered_for_more_workers_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(str(tmp_path), "many")
    many = with_changes(RUN, {"scale": {"num_workers": "2:8"}})
    claim(many, store)
    for asked in (many, RUN):  # the second asks for one worker
        assert start_stage(store, asked, False, monkeypatch).train.micro_batch == 16
        line = "in 8 micro-batches of 16 (train.micro_batch 64 is lowered to it), at most 8 a worker"
        assert line in capsys.readouterr().out


def test_the_line_of_a_stage_says_what_the_rates_are_multiplied_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled = changed(rate_batch=32)
    store = Store.open(str(tmp_path), "scaled")
    assert start_stage(store, scaled, False, monkeypatch) == scaled
    assert "at most 2 a worker; learning rates x 2\n" in capsys.readouterr().out
