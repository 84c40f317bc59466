"""Every space, drawn from: each trial makes a possible config, the draws are balanced and repeatable."""

import itertools
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store, fingerprint_of
from tests.helpers.spaces import load_space
from tune_spaces import options, spaces
from tune_spaces.options import space_names
from tune_spaces.space import METRICS, Choice, Point, Range, Space, setting_of
from tune_spaces.trials import Plan

NAMES = [name for name in space_names() if isinstance(options.load_space(name), Space)]


def corners(space: Space) -> list[Point]:
    """Every combination of choices, with both ends of each range."""
    ends = [
        list(range(len(domain.values))) if isinstance(domain, Choice) else [domain.low, domain.high]
        for domain in space.fields.values()
    ]
    return [dict(zip(space.fields, values, strict=True)) for values in itertools.product(*ends)]


def test_the_spaces_are_there() -> None:
    files = {path.stem for path in Path(spaces.__file__).parent.glob("*.py")} - {"__init__"}
    assert {"prior", "smoke", "structure", "vae"} <= files == set(space_names())


@pytest.mark.parametrize("name", NAMES)
def test_every_config_of_a_space_is_possible(name: str) -> None:
    space = load_space(name)
    base = space.base("digits")
    drawn = list(islice(space.points(0), 20))
    for point in [*corners(space), *drawn]:
        experiment = space.experiment(base, point)
        spec_of(experiment)
        for key, value in space.settings(point).items():
            if value is not None:
                assert setting_of(experiment, key) == value
    assert setting_of(space.experiment(base, {}), space.keys[0]) is not None
    assert space.metric in METRICS


@pytest.mark.parametrize("preset", ["mnist", "omniglot", "cifar10"])
def test_structure_fits_the_other_presets(preset: str) -> None:
    space = load_space("structure")
    for point in corners(space):
        space.experiment(space.base(preset), point)


def test_steps_left_to_the_grid_are_given_as_a_number() -> None:
    space = load_space("structure")
    point = {"bank.size": 1, "layout": 1, "prior.depth": 2}
    experiment = space.experiment(space.base("digits"), point)
    assert [setting_of(experiment, key) for key in space.keys] == [25, 7, 7, "aligned", 16, 6]


def test_the_same_seed_draws_the_same_points_and_more_only_adds() -> None:
    space = load_space("vae")
    first = list(islice(space.points(3), 6))
    assert list(islice(space.points(3), 12))[:6] == first
    assert list(islice(space.points(4), 6)) != first
    assert first[0] == {}


def test_choices_come_about_equally_often_and_ranges_are_filled() -> None:
    space = Space({"bank.size": Choice((1, 2, 3, 4)), "prior.learning_rate": Range(1e-4, 1e-2, log=True)}, 1)
    points = list(islice(space.points(0), 1, 33))
    assert all(count == 8 for count in Counter(p["bank.size"] for p in points).values())
    logs = sorted(math.log10(p["prior.learning_rate"]) for p in points)
    assert [math.floor((x + 4) * 4) for x in logs] == [eighth for eighth in range(8) for _ in range(4)]


def test_a_latin_hypercube_has_all_values_equally_often_in_orders_of_their_own() -> None:
    fields: dict[str, Choice | Range] = {
        "bank.size": Choice((1, 2, 3)),
        "vae.latents": Choice((0, 16)),
        "vae.learning_rate": Range(1e-4, 1e-1, log=True),
    }
    points = Space(fields, 1).latin(0, 6)
    assert Counter(p["bank.size"] for p in points) == {0: 2, 1: 2, 2: 2}
    assert Counter(p["vae.latents"] for p in points) == {0: 3, 1: 3}
    logs = [math.log10(p["vae.learning_rate"]) for p in points]
    assert sorted(math.floor((x + 4) * 2) for x in logs) == list(range(6))
    assert [p["vae.latents"] for p in points] != [float(x >= -2.5) for x in logs]  # no order of all fields
    assert Space(fields, 1).latin(0, 6) == points
    assert Space(fields, 1).latin(1, 6) != points
    other = Space({"vae.latents": fields["vae.latents"], "prior.depth": Choice((1, 2))}, 1).latin(0, 6)
    assert [p["vae.latents"] for p in other] == [p["vae.latents"] for p in points]


def test_structure_shares_banks_and_parses_among_trials() -> None:
    space = load_space("structure")
    base = space.base("digits")
    trials = [space.experiment(base, point) for point in corners(space)]
    assert len(trials) == 60
    # 24 ranked steps and 36 aligned ones of side 5 have one bank.
    assert len({fingerprint_of(trial, "bank") for trial in trials}) == 4 * 4
    assert len({fingerprint_of(trial, "parse") for trial in trials}) == 4 * 5


def test_vae_trials_have_one_prior() -> None:
    space = load_space("vae")
    base = space.base("digits")
    trials = [space.experiment(base, point) for point in islice(space.points(0), 10)]
    assert len({fingerprint_of(trial, "prior") for trial in trials}) == 1
    assert len({fingerprint_of(trial, "sample") for trial in trials}) == 10


def test_a_metric_of_a_stage_that_a_kind_lacks(tmp_path: Path) -> None:
    space = load_space("more_data")
    base = space.base("digits")
    plan = Plan(Store(fs.LocalFileSystem(), str(tmp_path)), base, space, "valid_prior_nll")
    plan.trial({"case": 0})
    with pytest.raises(UserError, match=r"model\.kind vae does not have; take valid_nll"):
        plan.trial({"case": 4})


def test_a_space_of_ones_own(tmp_path: Path) -> None:
    text = (
        "from tune_spaces.space import Choice, Space\n"
        "SPACE = Space({'bank.size': Choice((10, 20))}, samples=2)\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert load_space(str(file)).keys == ["bank.size"]
    for old, new, error in (
        (
            "bank.size",
            "bank.sizes",
            "--space .*mine.py: unknown key bank.sizes; did you mean bank.size",
        ),
        ("(10, 20)", "()", "--space .*mine.py: bank.size has no values"),
        ("(10, 20)", "(10, -20)", "--space .*mine.py: bank.size: input should be greater than 0, not -20"),
        ("SPACE =", "space =", "defines no SPACE"),
        ("(10, 20)", "1 / 0", "ZeroDivisionError"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=error):
            load_space(str(file))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"fields": {}}, "no fields"),
        ({"metric": "valid_nl"}, "did you mean valid_nll"),
        ({"preset": "digit"}, "did you mean digits"),
        ({"budgets": {"digit": {}}}, "did you mean digits"),
        ({"budgets": {"mnist": {"vae.image": 1}}}, "unknown key vae.image; did you mean vae.images"),
        ({"fields": {"vae.beta": Range(2.0, 1.0)}}, "vae.beta has no range from 2.0 to 1.0"),
        ({"fields": {"vae.beta": Range(0.0, 1.0, log=True)}}, "vae.beta has no range"),
        ({"fields": {"vae.beta": Range(-2.0, 1.0)}}, "vae.beta: input should be greater"),
        (
            {"fields": {"layout": Choice(({"grid.patch": 5}, {"grid.patches": 5}))}},
            "key grid.patches",
        ),
    ],
)
def test_a_wrong_space_is_refused_when_it_is_made(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        Space(**{"fields": {"bank.size": Choice((10, 20))}, "samples": 1, **arguments})


def test_a_value_that_the_config_refuses_is_named() -> None:
    space = Space({"prior.attention_heads": Choice((3, 5))}, 2)
    with pytest.raises(UserError, match=r"prior\.attention_heads must divide prior\.width"):
        space.experiment(space.base("digits"), {"prior.attention_heads": 1})
