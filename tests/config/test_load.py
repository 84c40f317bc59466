"""Presets, files and flags become one experiment, or one line that says what to change."""

from pathlib import Path

import pytest
import yaml

from npdraw_dist.config.load import build, differences, dump, preset_names, read_preset, resolve
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.errors import UserError

RASTER = {"parse": {"order": "raster", "steps": 12}}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_and_gives_a_model(name: str) -> None:
    experiment = build(read_preset(name))
    spec = ModelSpec.of(experiment)
    assert spec.parts == experiment.bank.size
    assert spec.grid == experiment.canvas_grid
    assert 1 <= spec.steps <= spec.grid.places


@pytest.mark.parametrize("name", preset_names())
def test_dump_read_as_config_is_the_same_experiment(name: str, tmp_path: Path) -> None:
    flags = {"seed": 7, "prior": {"learning_rate": 1e-5}, "scale": {"use_gpu": False}}
    experiment = resolve(name, None, flags)
    path = tmp_path / "config.yaml"
    path.write_text(dump(experiment))
    assert resolve("mnist", path, {}) == resolve("emoji", path, {}) == experiment  # no preset shows through


def test_flags_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 3\nprior: {depth: 3, width: 32}\n")
    experiment = resolve("mnist", path, {"prior": {"depth": 5}})
    assert experiment.data.source == "mnist"
    assert (experiment.seed, experiment.prior.depth, experiment.prior.width) == (3, 5, 32)


def test_a_key_in_the_wrong_section_names_a_known_one() -> None:
    with pytest.raises(UserError, match=r"did you mean data\.max_bad_fraction"):
        build({"parse": {"max_bad_fraction": 0.1}})


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


def test_the_spec_fills_in_the_widths() -> None:
    spec = ModelSpec.of(build({"prior": {"width": 32, "attention_heads": 2}}))
    assert (spec.prior.head_width, spec.prior.mlp) == (16, 128)
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_latents_are_of_the_image_or_of_a_map() -> None:
    of_image, of_map = (build({"vae": {"latents": value}}).vae for value in ("16", "map:8"))
    assert (of_image.latents, of_image.latent_count, of_image.latent_map) == (16, 16, False)
    assert (of_map.latents, of_map.latent_count, of_map.latent_map) == ("map:8", 8, True)
