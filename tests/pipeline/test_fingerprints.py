"""What a setting changes: fingerprints of the first stage that reads it and all that follow; or nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline import train_stage
from npdraw_dist.pipeline.inputs import claim
from npdraw_dist.pipeline.store import BROKEN, Store, fingerprint_of
from npdraw_dist.training import cluster, launch
from npdraw_dist.training.workers import Workers
from tests.helpers.in_process import Stopped, stopped

STAGES = ["bank", "parse", "prior", "vae", "sample"]


def fingerprints(**sections: Any) -> dict[str, str]:
    return {stage: fingerprint_of(Experiment.model_validate(sections), stage) for stage in STAGES}


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"seed": 1}, "bank"),
        ({"data": {"fraction": 0.5}}, "bank"),
        ({"grid": {"background": "white"}}, "bank"),
        ({"grid": {"background": "black"}}, None),
        ({"parse": {"order": "raster"}}, "parse"),
        ({"prior": {"depth": 2}}, "prior"),
        ({"train": {"micro_batch": 32}}, "prior"),
        ({"vae": {"images": 512}}, "vae"),
        ({"model": {"kind": "authors"}, "prior": {"heads": "independent"}}, "bank"),
        ({"data": {"binarize": "threshold"}}, "vae"),
        ({"eval": {"k": 5}}, "sample"),
        ({"bank": {"shards": 4}, "data": {"cache_mb": 1, "max_bad_fraction": 0.5}}, None),
        ({"scale": {"num_workers": 2, "max_failures": 0, "use_gpu": False}}, None),
    ],
)
def test_what_a_setting_changes(changed: dict[str, Any], first: str | None) -> None:
    before, after = fingerprints(), fingerprints(**changed)
    assert len(set(before.values())) == len(STAGES)
    differ = [stage for stage in STAGES if before[stage] != after[stage]]
    assert differ == ([] if first is None else STAGES[STAGES.index(first) :])


def test_a_baseline_sees_of_the_grid_only_the_background() -> None:
    def of(**grid: str | int) -> list[str]:
        experiment = Experiment.model_validate({"grid": grid, "model": {"kind": "vae"}})
        return [fingerprint_of(experiment, stage) for stage in ("parse", "vae", "sample")]

    default, white = of(), of(background="white")
    assert of(stride=4) == of(background="black") == default
    assert [a == b for a, b in zip(default, white, strict=True)] == [True, False, False]


def test_only_kinds_with_codes_depend_on_the_prior_but_not_on_its_budget() -> None:
    """They have no stage `prior`."""

    def of(kind: str, **prior: int) -> str:
        return fingerprint_of(Experiment.model_validate({"model": {"kind": kind}, "prior": prior}), "vae")

    for kind, depends in {"vqvae": True, "vae": False}.items():
        assert (of(kind, depth=2) != of(kind, depth=3)) == depends
    assert of("vqvae", images=100) == of("vqvae", images=200)


RUN = Experiment.model_validate({"train": {"eval_every_images": 512, "select": "last"}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path), "run")
    claim(RUN, store)
    return store


def changed(**train: Any) -> Experiment:
    return with_changes(RUN, {"train": train})


def test_a_resume_may_change_some_and_no_others(store: Store, tmp_path: Path) -> None:
    before = Path(store.path("config.yaml")).read_bytes()
    for train in ({"precision": "bfloat16", "eval_every_images": 256}, {"micro_batch": 32}):
        own, fresh = claim(changed(**train), store)
        assert not fresh
        for stage in RUN.stage_names:
            assert fingerprint_of(own, stage) == fingerprint_of(RUN, stage)
        assert store.as_asked(own) == changed(**train)
        # The next start without the flags does what the run did at first.
        own, _ = claim(RUN, store)
        assert store.as_asked(own) == own == RUN
    with pytest.raises(UserError, match=r"another config \(train\.patience: 3 -> 1\)"):
        claim(changed(micro_batch=32, patience=1), store)
    assert Path(store.path("config.yaml")).read_bytes() == before
    # Where the best checkpoint is taken, their times count.
    best = Store.open(str(tmp_path), "best")
    claim(changed(select="best"), best)
    claim(changed(select="best", micro_batch=32), best)
    with pytest.raises(UserError, match=r"\(train\.eval_every_images: 512 -> 256\)"):
        claim(changed(select="best", eval_every_images=256), best)


def test_only_a_stage_whose_loss_broke_goes_on_with_another_rate(store: Store) -> None:
    slower = with_changes(RUN, {"vae": {"learning_rate": 1e-4}})
    with pytest.raises(UserError, match=r"vae\.learning_rate"):
        claim(slower, store)
    store.write_json({"stage": "vae", "step": 7}, BROKEN)
    store.write_manifest({}, "vae")  # also after it has ended with the other rate
    own, _ = claim(slower, store)
    assert fingerprint_of(own, "vae") == fingerprint_of(RUN, "vae")
    assert store.as_asked(own) == slower
    with pytest.raises(UserError, match=r"another config \(train\.patience: 3 -> 1\)"):
        claim(with_changes(slower, {"train": {"patience": 1}}), store)


def start_stage(store: Store, asked: Experiment, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Runs a stage up to its training; returns the experiment of its workers."""
    jobs: list[Experiment] = []

    def make_job(experiment: Experiment, *rest: object) -> SimpleNamespace:
        jobs.append(experiment)
        return SimpleNamespace(parses=(), images=1, experiment=experiment, stage="prior")

    monkeypatch.setattr(train_stage, "_make_job", make_job)
    monkeypatch.setattr(cluster, "plan_workers", lambda *_: Workers(1, 1, 1, gpu))
    monkeypatch.setattr(launch, "run_training", stopped)
    own, _ = claim(asked, store)
    with pytest.raises(Stopped):
        train_stage.run_stage(own, store, "prior", SimpleNamespace, None)  # type: ignore[arg-type]
    return jobs[0]


def test_the_workers_do_what_is_asked_but_for_another_precision_on_a_gpu(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = changed(precision="float32", eval_every_images=256)
    assert start_stage(store, asked, False, monkeypatch) == asked
    assert start_stage(store, changed(micro_batch=32), False, monkeypatch).train.micro_batch == 32
    assert start_stage(store, changed(eval_every_images=256), True, monkeypatch).train.precision == "auto"
    with pytest.raises(UserError, match=r"train\.precision: auto -> float32"):
        start_stage(store, changed(precision="float32"), True, monkeypatch)
