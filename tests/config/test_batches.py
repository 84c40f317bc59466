"""How a global batch is cut for its workers, and the learning rate that it takes."""

import math
from typing import Any

import pytest

from npdraw_dist.config.load import batch_of_resume, build, preset_names, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.train_stage import with_settings_of
from npdraw_dist.training.loop import report_interval

CLUSTER = {"mnist_cluster": "mnist", "celeba_cluster": "celeba"}


def batches(workers: int | str, **train: Any) -> Experiment:
    return build({"train": train, "scale": {"num_workers": workers}})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_takes_the_workers_of_the_readme(name: str) -> None:
    whole = resolve(name, None, {})
    for workers in ("2:8", 3):
        experiment = resolve(name, None, {"scale": {"num_workers": workers}})
        for stage in ("prior", "vae"):
            size, micro = experiment.batch_of(stage)
            assert size % micro == 0
            assert size // micro >= experiment.scale.most_workers
            assert size == whole.batch_of(stage)[0]


@pytest.mark.parametrize(
    ("size", "micro", "workers", "cut"),
    [
        (128, 64, 1, 64),
        (128, 64, 3, 32),  # 42 do not divide the batch
        (128, 64, "2:8", 16),
        (16, 8, 16, 1),
        (17, 17, 2, 1),
        (8, 16, 1, 8),
    ],
)
def test_a_micro_batch_is_lowered_until_each_worker_has_one(
    size: int, micro: int, workers: int | str, cut: int
) -> None:
    experiment = batches(workers, batch_size=size, micro_batch=micro)
    assert experiment.batch_of("vae") == experiment.batch_of("prior") == (size, cut)
    assert with_settings_of("vae", experiment).train.micro_batch == cut
    assert experiment.train.micro_batch == micro  # as it was asked for


def test_a_range_from_0_is_this_process_unless_there_is_a_cluster() -> None:
    scale = batches("0:3", batch_size=16, micro_batch=16).scale
    assert (scale.least_workers, scale.most_workers, scale.here) == (1, 3, False)
    assert scale.placed(cluster=True).num_workers == "1:3"
    alone = scale.placed(cluster=False)
    assert (alone.num_workers, alone.here) == (0, True)
    for own in ({"cpus_per_worker": 2}, {"gpus_per_worker": 0.5}):
        sized = build({"scale": {"num_workers": "0:3", **own}}).scale
        assert sized.placed(cluster=False).num_workers == "1:3"
    for workers in (0, 2, "1:3"):
        fixed = batches(workers, batch_size=16, micro_batch=16).scale
        assert fixed.placed(cluster=True) == fixed.placed(cluster=False) == fixed


@pytest.mark.parametrize(("workers", "authors"), [(1, False), ("2:8", True), (32, False)])
def test_the_workers_do_not_change_how_many_images_validate(workers: int | str, authors: bool) -> None:
    experiment = build(
        {
            "train": {"batch_size": 128, "micro_batch": 64, "eval_batches": 5},
            "prior": {"heads": "independent"},
            "authors": {"model": authors},
            "scale": {"num_workers": workers},
        }
    )
    for stage, images in (("vae", 320), ("prior", 320)):
        assert experiment.validated_in(stage) == images
        settings = with_settings_of(stage, experiment).train
        assert settings.eval_batches * settings.micro_batch == images


def test_a_resume_keeps_the_micro_batch_of_the_first_start() -> None:
    run, one, many = batches("2:8"), batches(1), batches(32)
    assert batch_of_resume(run, run, "vae") == (128, 16)
    assert batch_of_resume(run, one, "vae") == (128, 16)  # as in config.yaml, though 64 would do
    assert batch_of_resume(one, run, "vae") == (128, 16)  # more workers
    assert batch_of_resume(run, many, "vae") == (128, 4)
    assert batch_of_resume(run, batches(1, micro_batch=32), "vae") == (128, 32)  # asked for by its name
    assert with_settings_of("vae", one, run).train.micro_batch == 16


def test_the_rates_of_another_batch() -> None:
    assert build({}).train.rate_scale == 1
    for size, scale in ((512, 2), (128, 1), (64, math.sqrt(0.5))):
        assert batches(1, batch_size=size, rate_batch=128).train.rate_scale == pytest.approx(scale)


def test_a_stage_with_a_batch_of_its_own_has_the_rates_of_that_batch() -> None:
    own = resolve("authors", None, {"train": {"batch_size": 500, "micro_batch": 50, "rate_batch": 125}})
    prior, vae = (with_settings_of(stage, own).train for stage in ("prior", "vae"))
    assert (prior.batch_size, prior.micro_batch, prior.rate_scale) == (64, 32, math.sqrt(64 / 125))
    assert (vae.batch_size, vae.micro_batch, vae.rate_scale) == (500, 50, 2)


@pytest.mark.parametrize(
    ("images", "every", "interval"), [(600, 20, 20), (1000, 1, 1), (10**9, 60_000, 10**6)]
)
def test_a_large_budget_has_a_thousand_reports_at_most(images: int, every: int, interval: int) -> None:
    assert report_interval(images, every) == interval


@pytest.mark.parametrize("name", CLUSTER)
def test_a_cluster_preset_is_the_model_of_its_base(name: str) -> None:
    base, large = resolve(CLUSTER[name], None, {}), resolve(name, None, {})
    assert large.train.rate_batch == base.train.batch_size
    assert large.batch_of("vae")[1] == large.train.micro_batch  # none is lowered
    budget = {"images", "relaxed_images", "plain_images"}
    for section in ("data", "grid", "bank", "parse", "prior", "vae"):
        old, new = (getattr(one, section).model_dump(exclude=budget) for one in (base, large))
        assert new == old, section
