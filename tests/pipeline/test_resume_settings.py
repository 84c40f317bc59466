"""Settings that change no result do not refuse a resume: fingerprints stay, and the work is as asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline import train_stage
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.inputs import claim
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.resources import Workers

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
    {"compile": True, "precision": "bfloat16", "eval_every_images": 256, "keep_checkpoints": 5},
]


@pytest.mark.parametrize("train", CHANGES)
def test_a_resume_may_change_them(store: Store, train: dict[str, Any]) -> None:
    before = Path(store.path("config.yaml")).read_bytes()
    own, fresh = claim(changed(**train), store)
    assert not fresh
    assert [of_stage(own, stage) for stage in RUN.stage_names] == [
        of_stage(RUN, stage) for stage in RUN.stage_names
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
        ({"compile": True, "warmup": 0.2}, r"\(train\.warmup: 0\.05 -> 0\.2\)"),
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

    def make_job(experiment: Experiment, *_: object) -> SimpleNamespace:
        jobs.append(experiment)
        return SimpleNamespace(train=object(), images=1)

    def started(*_: object) -> None:
        raise Started

    monkeypatch.setattr(train_stage, "_make_job", make_job)
    monkeypatch.setattr(train_stage, "plan_workers", lambda scale, reading: Workers(1, 1, 1, gpu))
    monkeypatch.setattr(train_stage, "run_training", started)
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
