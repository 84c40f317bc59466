"""Presets, files and flags become one experiment; each name of the registry has its code."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.config.load import (
    build,
    differences,
    dotted,
    dump,
    preset_names,
    read_preset,
    resolve,
)
from npdraw_dist.config.registry import KINDS, LIKELIHOODS, ORDERS, SOURCES, load
from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core import orders
from npdraw_dist.nn.likelihoods import make_likelihood
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.loop import report_interval

CLUSTER = {"mnist_cluster": "mnist", "celeba_cluster": "celeba"}


def batches(workers: int | str, **train: Any) -> Experiment:
    return build({"train": train, "scale": {"num_workers": workers}})


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_gives_a_model_and_its_dump_is_the_same_experiment(name: str, tmp_path: Path) -> None:
    spec = ModelSpec.of(build(read_preset(name)))
    assert 1 <= spec.steps <= spec.grid.places
    experiment = resolve(name, None, {"seed": 7, "prior": {"learning_rate": 1e-5}})
    path = tmp_path / "config.yaml"
    path.write_text(dump(experiment))
    assert resolve("mnist", path, {}) == resolve("emoji", path, {}) == experiment  # no preset shows through
    for workers in ("2:8", 3):  # as README has them
        scaled = resolve(name, None, {"scale": {"num_workers": workers}})
        for stage in ("prior", "vae"):
            assert scaled.train_of(stage) == experiment.train_of(stage)
            assert experiment.train_of(stage).batch_size >= scaled.scale.most_workers


def test_flags_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 3\nprior: {depth: 3, width: 32}\nscale: {num_workers: 2:8}\n")
    experiment = resolve("mnist", path, {"prior": {"depth": 5}})
    assert experiment.scale.num_workers == "2:8"  # in YAML 1.1 a number in base 60
    assert experiment.data.source == "mnist"
    assert (experiment.seed, experiment.prior.depth, experiment.prior.width) == (3, 5, 32)


def test_a_key_in_the_wrong_section_names_a_known_one() -> None:
    with pytest.raises(UserError, match=r"did you mean data\.max_bad_fraction"):
        build({"parse": {"max_bad_fraction": 0.1}})


def test_differences_name_dotted_keys() -> None:
    old, new = build({}), build({"seed": 2, "parse": {"order": "raster", "steps": 12}})
    found = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    assert found == ["parse.order: aligned -> raster", "parse.steps: None -> 12", "seed: 0 -> 2"]
    assert differences(yaml.safe_load(dump(old)), old.model_dump(mode="json")) == []


def test_what_is_made_does_not_depend_on_how_it_is_run() -> None:
    """No setting of section `scale` decides it."""
    experiment = build({})
    run_half = set(dotted(experiment.model_dump(mode="json"))) - set(dotted(experiment.made()))
    assert {name for name in run_half if not name.startswith("scale.")} == {
        *("data.path", "data.cache_mb", "data.max_bad_fraction", "bank.shards", "prior.vocabulary"),
        *("train.micro_batch", "train.precision", "train.compile", "eval.split", "init.model", "init.bank"),
    }
    assert {f"scale.{name}" for name in ScaleConfig.model_fields} <= run_half
    last = build({"train": {"select": "last"}})
    assert set(dotted(experiment.made())) - set(dotted(last.made())) == {"train.eval_every_images"}


def test_the_spec_fills_in_the_widths() -> None:
    spec = ModelSpec.of(build({"prior": {"width": 32, "attention_heads": 2}}))
    assert (spec.prior.head_width, spec.prior.mlp) == (16, 128)
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_latents_are_of_the_image_or_of_a_map() -> None:
    of_image, of_map = (build({"vae": {"latents": value}}).vae for value in ("16", "map:8"))
    assert (of_image.latents, of_image.latent_count, of_image.latent_map) == (16, 16, False)
    assert (of_map.latents, of_map.latent_count, of_map.latent_map) == ("map:8", 8, True)


def test_a_registered_name_has_its_code() -> None:
    for source in SOURCES.values():
        assert callable(load(source.code))
    for name, entry in LIKELIHOODS.items():
        likelihood = make_likelihood(name, 1 if entry.binary else 3)
        assert likelihood.canvas_start().weight.shape[0] == likelihood.parameters_per_pixel
    for kind in KINDS.values():
        assert issubclass(kind, NPDraw | Baseline)
        assert not getattr(kind, "__abstractmethods__", None)
    assert {name: order.aligned for name, order in orders.ORDERS.items()} == ORDERS


def test_a_range_from_0_is_this_process_unless_there_is_a_cluster() -> None:
    scale = batches("0:3", batch_size=16, micro_batch=16).scale
    assert (scale.least_workers, scale.most_workers, scale.in_process) == (1, 3, False)
    assert scale.placed(cluster=True).num_workers == "1:3"
    alone = scale.placed(cluster=False)
    assert (alone.num_workers, alone.in_process) == (0, True)
    for own in ({"cpus_per_worker": 2}, {"gpus_per_worker": 0.5}):
        sized = build({"scale": {"num_workers": "0:3", **own}}).scale
        assert sized.placed(cluster=False).num_workers == "1:3"
    for workers in (0, 2, "1:3"):
        fixed = batches(workers, batch_size=16, micro_batch=16).scale
        assert fixed.placed(cluster=True) == fixed.placed(cluster=False) == fixed


def test_the_rates_of_another_batch() -> None:
    assert build({}).train.rate_scale == 1
    for size, scale in ((512, 2), (128, 1), (64, math.sqrt(0.5))):
        assert batches(1, batch_size=size, rate_batch=128).train.rate_scale == pytest.approx(scale)


def test_a_stage_with_a_batch_of_its_own_has_the_rates_of_that_batch() -> None:
    own = resolve("authors", None, {"train": {"batch_size": 500, "micro_batch": 50, "rate_batch": 125}})
    prior, vae = (own.train_of(stage) for stage in ("prior", "vae"))
    assert (prior.batch_size, prior.rate_scale) == (64, math.sqrt(64 / 125))
    assert (vae.batch_size, vae.rate_scale) == (500, 2)


@pytest.mark.parametrize(
    ("images", "every", "interval"), [(600, 20, 20), (1000, 1, 1), (10**9, 60_000, 10**6)]
)
def test_a_large_budget_has_a_thousand_reports_at_most(images: int, every: int, interval: int) -> None:
    assert report_interval(images, every) == interval


@pytest.mark.parametrize("name", CLUSTER)
def test_a_cluster_preset_is_the_model_of_its_base(name: str) -> None:
    base, large = resolve(CLUSTER[name], None, {}), resolve(name, None, {})
    assert large.train.rate_batch == base.train.batch_size
    budget = {"images", "relaxed_images", "plain_images", "cache_mb"}
    for section in ("data", "grid", "bank", "parse", "prior", "vae"):
        old, new = (getattr(one, section).model_dump(exclude=budget) for one in (base, large))
        assert new == old, section
