"""A setting changes the fingerprints of the first stage that reads it and of all later ones, or none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.distributed import run as ray_run
from npdraw_dist.distributed.resources import Workers
from npdraw_dist.pipeline import train_stage
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.system.errors import UserError
from tests.helpers.in_process import Stopped, stopped

STAGES = ["data", "bank", "parse", "prior", "vae", "sample"]


def fingerprints(**sections: Any) -> dict[str, str]:
    return {stage: fingerprint_of(Experiment.model_validate(sections), stage) for stage in STAGES}


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"seed": 1}, "data"),
        ({"data": {"fraction": 0.5}}, "data"),
        ({"grid": {"background": "white"}}, "bank"),
        ({"grid": {"background": "black"}}, None),
        ({"parse": {"order": "raster"}}, "parse"),
        ({"prior": {"depth": 2}}, "prior"),
        ({"train": {"micro_batch": 32, "compile": True, "precision": "float32"}}, None),
        ({"train": {"patience": 1}}, "prior"),
        ({"train": {"select": "last"}}, "prior"),
        ({"vae": {"images": 512}}, "vae"),
        ({"model": {"kind": "authors"}, "prior": {"heads": "independent"}}, "bank"),
        ({"data": {"binarize": "threshold"}}, "vae"),
        ({"eval": {"k": 5}}, "sample"),
        ({"bank": {"shards": 4}, "data": {"path": "x", "cache_mb": 1, "max_bad_fraction": 0.5}}, None),
        ({"init": {"model": "x"}, "eval": {"split": "valid"}}, None),
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
        return [fingerprint_of(experiment, stage) for stage in ("data", "vae", "sample")]

    default, white = of(), of(background="white")
    assert of(stride=4) == of(background="black") == default
    assert [a == b for a, b in zip(default, white, strict=True)] == [True, False, False]


def test_only_kinds_with_codes_depend_on_the_prior_but_not_on_its_budget() -> None:
    """These kinds have no stage `prior`."""

    def of(kind: str, **prior: int) -> str:
        return fingerprint_of(Experiment.model_validate({"model": {"kind": kind}, "prior": prior}), "vae")

    for kind, depends in {"vqvae": True, "vae": False}.items():
        assert (of(kind, depth=2) != of(kind, depth=3)) == depends
    assert of("vqvae", images=100) == of("vqvae", images=200)


RUN = Experiment.model_validate({"train": {"eval_every_images": 512, "select": "last"}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path), "run")
    store.claim(RUN)
    return store


def changed(**train: Any) -> Experiment:
    return with_changes(RUN, {"train": train})


def test_a_resume_may_change_some_and_no_others(store: Store, tmp_path: Path) -> None:
    before = Path(store.path("config.yaml")).read_bytes()
    for train in ({"precision": "bfloat16", "eval_every_images": 256}, {"micro_batch": 32}):
        other = changed(**train)
        assert not store.claim(other)
        for stage in RUN.stage_names:
            assert fingerprint_of(other, stage) == fingerprint_of(RUN, stage)
    for other, said in (
        (changed(precision="bfloat16", patience=1), r"train\.patience: 3 -> 1"),
        (with_changes(RUN, {"vae": {"learning_rate": 1e-4}}), r"vae\.learning_rate: 0\.001 -> 0\.0001"),
    ):
        with pytest.raises(UserError, match=rf"another config \({said}\)"):
            store.claim(other)
    assert Path(store.path("config.yaml")).read_bytes() == before
    # The times of the checkpoints decide which one is best.
    best = Store.open(str(tmp_path), "best")
    best.claim(changed(select="best"))
    best.claim(changed(select="best", precision="bfloat16"))
    with pytest.raises(UserError, match=r"\(train\.eval_every_images: 512 -> 256\)"):
        best.claim(changed(select="best", eval_every_images=256))


def start_stage(
    store: Store, experiment: Experiment, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> Experiment:
    """Runs a stage up to its training; returns the experiment of its workers."""
    jobs: list[Experiment] = []

    monkeypatch.setattr(train_stage, "_make_job", lambda experiment, *_: jobs.append(experiment))
    monkeypatch.setattr(train_stage, "plan_workers", lambda *_: Workers(1, 1, 1, gpu))
    monkeypatch.setattr(ray_run, "run_training", stopped)
    store.claim(experiment)
    with pytest.raises(Stopped):
        train_stage.run_stage(experiment, store, "prior", SimpleNamespace, None)  # type: ignore[arg-type]
    return jobs[0]


def test_a_resume_may_change_how_workers_train_but_not_the_precision_on_a_gpu(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = changed(precision="float32", eval_every_images=256)
    assert start_stage(store, other, False, monkeypatch) == other
    assert start_stage(store, changed(micro_batch=32), False, monkeypatch).train.micro_batch == 32
    assert start_stage(store, changed(eval_every_images=256), True, monkeypatch).train.precision == "auto"
    with pytest.raises(UserError, match=r"train\.precision: auto -> float32"):
        start_stage(store, changed(precision="float32"), True, monkeypatch)
