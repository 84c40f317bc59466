"""A setting changes the fingerprint of the first stage that reads it, and of all that follow."""

from typing import Any

import pytest

from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.store import fingerprint_of

STAGES = ["bank", "parse", "prior", "vae", "sample"]


def fingerprints(**sections: Any) -> dict[str, str]:
    return {stage: fingerprint_of(Experiment.model_validate(sections), stage) for stage in STAGES}


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"seed": 1}, "bank"),
        ({"data": {"fraction": 0.5}}, "bank"),
        ({"data": {"source": "mnist"}}, "bank"),
        ({"data": {"path": "elsewhere"}}, "bank"),
        ({"data": {"valid_fraction": 0.2}}, "bank"),
        ({"grid": {"stride": 4}}, "bank"),
        ({"grid": {"background": "white"}}, "bank"),
        ({"grid": {"background": "black"}}, None),
        ({"bank": {"size": 20}}, "bank"),
        ({"bank": {"max_patches": 1000}}, "bank"),
        ({"bank": {"min_energy": 0.02}}, "bank"),
        ({"parse": {"order": "raster"}}, "parse"),
        ({"parse": {"order": "ranked", "steps": 12}}, "parse"),
        ({"prior": {"depth": 2}}, "prior"),
        ({"prior": {"heads": "independent"}}, "prior"),
        ({"prior": {"images": 512}}, "prior"),
        ({"train": {"batch_size": 64}}, "prior"),
        ({"train": {"micro_batch": 32}}, "prior"),
        ({"train": {"rate_batch": 32}}, "prior"),
        ({"vae": {"images": 512}}, "vae"),
        ({"vae": {"beta": 0.5}}, "vae"),
        ({"authors": {"model": True}, "prior": {"heads": "independent"}}, "bank"),
        ({"data": {"binarize": "threshold"}}, "vae"),
        ({"eval": {"k": 5}}, "sample"),
        ({"eval": {"temperature": 0.8}}, "sample"),
        ({"bank": {"shards": 4}}, None),
        ({"data": {"cache_mb": 1}}, None),
        ({"data": {"max_bad_fraction": 0.5}}, None),
        ({"scale": {"num_workers": 2, "max_failures": 0, "use_gpu": False}}, None),
    ],
)
def test_what_a_setting_changes(changed: dict[str, Any], first: str | None) -> None:
    before, after = fingerprints(), fingerprints(**changed)
    differ = [stage for stage in STAGES if before[stage] != after[stage]]
    assert differ == ([] if first is None else STAGES[STAGES.index(first) :])


def test_the_stages_of_a_run_differ() -> None:
    assert len(set(fingerprints().values())) == len(STAGES)


def test_an_unknown_stage() -> None:
    with pytest.raises(KeyError):
        fingerprint_of(Experiment(), "draw")


def test_a_baseline_sees_of_the_grid_only_the_background() -> None:
    def of(**grid: str | int) -> list[str]:
        experiment = Experiment.model_validate({"grid": grid, "model": {"kind": "vae"}})
        return [fingerprint_of(experiment, stage) for stage in ("parse", "vae", "sample")]

    default, white = of(), of(background="white")
    assert of(stride=4) == of(background="black") == default
    assert [a == b for a, b in zip(default, white, strict=True)] == [True, False, False]
