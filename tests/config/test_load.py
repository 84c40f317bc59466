"""Presets, files and flags become one experiment, or one line that says what to change."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from npdraw_dist.config.load import build, differences, dump, merge, preset_names, read_preset, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.train_stage import with_settings_of

RASTER = {"parse": {"order": "raster", "steps": 12}}


def message(values: dict[str, object]) -> str:
    with pytest.raises(UserError) as caught:
        build(values)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_and_gives_a_model(name: str) -> None:
    experiment = build(read_preset(name))
    spec = ModelSpec.of(experiment)
    assert spec.parts == experiment.bank.size
    assert spec.grid == experiment.canvas_grid
    assert 1 <= spec.steps <= spec.grid.places


def test_the_presets_of_the_design_exist() -> None:
    assert {"digits", "mnist"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_dump_read_as_config_is_the_same_experiment(name: str, tmp_path: Path) -> None:
    flags = {"seed": 7, "prior": {"learning_rate": 1e-5}, "scale": {"use_gpu": False}}
    experiment = resolve(name, None, flags)
    path = tmp_path / "config.yaml"
    path.write_text(dump(experiment))
    for under in preset_names():  # the file holds everything, so no preset shows through
        assert resolve(under, path, {}) == experiment


def test_flags_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 3\nprior: {depth: 3, width: 32}\n")
    experiment = resolve("mnist", path, {"prior": {"depth": 5}})
    assert experiment.data.source == "mnist"
    assert (experiment.seed, experiment.prior.depth, experiment.prior.width) == (3, 5, 32)


def test_merge_goes_into_sections_and_leaves_its_arguments() -> None:
    low, high = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": {"z": 4}}
    assert merge(low, high) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 4}}
    assert low == {"a": {"x": 1, "y": 2}, "b": 1}


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("prior", "dept", "prior.depth"),
        ("bank", "sise", "bank.size"),
        ("vae", "learning_rat", "vae.learning"),
    ],
)
def test_an_unknown_key_names_the_nearest(section: str, wrong: str, right: str) -> None:
    text = message({section: {wrong: 3}})
    assert f"unknown key {section}.{wrong}" in text
    assert f"did you mean {right}" in text


def test_a_key_in_the_wrong_section_names_a_known_one() -> None:
    assert "did you mean data.max_bad_fraction" in message({"parse": {"max_bad_fraction": 0.1}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"bank": {"size": 0}}, "bank.size"),
        ({"parse": {"steps": 0}}, "parse.steps"),
        ({"parse": {"order": "raster", "steps": 37}}, "parse.steps is 37, but the grid has 36 places"),
        ({"parse": {"order": "aligned", "steps": 12}}, "aligned takes one step a place: parse.steps 36"),
        ({"parse": {"order": "spiral"}}, "parse.order"),
        ({"grid": {"patch": 40}}, "grid.patch is 40"),
        ({"grid": {"stride": 6}}, "grid.stride is 6"),
        ({"grid": {"downscale": 3}}, "grid.downscale 3 does not divide"),
        ({"prior": {"width": 30}}, "prior.attention_heads must divide prior.width"),
        ({"train": {"batch_size": 100, "micro_batch": 64}}, "train.micro_batch"),
        ({"scale": {"num_workers": 129}}, "scale.num_workers is 129, but a batch has 128 images"),
        ({"data": {"source": "parquet"}}, "data.image_size and data.channels"),
        ({"data": {"source": "mnist", "channels": 1}}, "are fixed for data.source mnist"),
        ({"data": {"valid_fraction": 0.5, "test_fraction": 0.5}}, "no training image"),
        ({"data": {"source": "cifar10"}}, "vae.likelihood bernoulli is for grey images"),
        ({"vae": {"likelihood": "logistic"}}, "needs data.binarize none"),
        ({"data": {"binarize": "none"}}, "needs data.binarize dynamic"),
        ({"seed": -1}, "seed"),
        ({"authors": {"model": True}, "parse": {"order": "path"}}, "it needs parse.order aligned"),
        ({"authors": {"model": True}}, "authors.model needs prior.heads independent"),
        (
            {"authors": {"model": True}, "prior": {"heads": "independent"}, "vae": {"latents": 4}},
            "vae.latents adds to the features of our decoder",
        ),
        ({"vae": {"latents": "local:4"}}, "vae.latents is 'local:4'; give a number such as 16"),
        ({"vae": {"latents": -1}}, "vae.latents is -1; give a number such as 16"),
    ],
)
def test_the_impossible_is_refused_by_name(values: dict[str, object], named: str) -> None:
    assert named in message(values)


def test_what_is_just_possible_builds() -> None:
    assert build({"parse": {"order": "raster", "steps": 36}}).steps == 36
    assert build({"parse": {"order": "aligned", "steps": 36}}).steps == 36
    assert build({}).steps == 36
    assert build(RASTER).steps == 12
    colour = {
        "data": {"source": "cifar10", "binarize": "none"},
        "grid": {"patch": 4, "stride": 4, "downscale": 2},
        "vae": {"likelihood": "logistic_mixture"},
    }
    assert build(colour).canvas_grid.places == 16


def test_an_experiment_is_frozen() -> None:
    experiment = Experiment()
    with pytest.raises(ValidationError):
        experiment.prior.depth = 9  # type: ignore[misc]


def test_differences_name_dotted_keys() -> None:
    old, new = build({}), build({"seed": 2, "prior": {"depth": 6}, **RASTER})
    found = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    assert found == [
        "parse.order: aligned -> raster",
        "parse.steps: None -> 12",
        "prior.depth: 4 -> 6",
        "seed: 0 -> 2",
    ]
    assert differences(yaml.safe_load(dump(old)), old.model_dump(mode="json")) == []


def test_a_preset_of_nobody_and_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean mnist"):
        read_preset("mnits")
    for content in (b"a: [1", b"- 1\n- 2\n", b"\xff\xfe\x00"):
        path = tmp_path / "config.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"config\.yaml"):
            resolve("digits", path, {})
    with pytest.raises(UserError, match="cannot read the config"):
        resolve("digits", tmp_path / "absent.yaml", {})


def test_the_spec_fills_in_the_widths() -> None:
    spec = ModelSpec.of(build({"prior": {"width": 32, "attention_heads": 2}}))
    assert (spec.prior.head_width, spec.prior.mlp) == (16, 128)
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_latents_are_of_the_image_or_of_a_map() -> None:
    of_image, of_map = (build({"vae": {"latents": value}}).vae for value in ("16", "map:8"))
    assert (of_image.latents, of_image.latent_count, of_image.latent_map) == (16, 16, False)
    assert (of_map.latents, of_map.latent_count, of_map.latent_map) == ("map:8", 8, True)


def test_the_authors_prior_has_a_batch_of_its_own() -> None:
    authors = {"authors": {"model": True}, "prior": {"heads": "independent"}}
    own = build({"train": {"batch_size": 500, "micro_batch": 50}, **authors})
    assert own.batch_of("prior") == (64, 32)
    assert own.batch_of("vae") == (500, 50)
    train = with_settings_of("prior", own).train
    assert (train.batch_size, train.micro_batch) == (64, 32)
    assert with_settings_of("vae", own) == own
