"""Every space, drawn from: each trial makes a possible config, the draws are balanced and repeatable."""

import itertools
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.pipeline.store import fingerprint_of
from npdraw_dist.system.errors import UserError
from tests.helpers.spaces import load_space
from tune_spaces import driver, options
from tune_spaces.options import Options, space_names
from tune_spaces.space import Choice, Point, Range, Space, setting_of

NAMES = [name for name in space_names() if isinstance(options.load_space(name), Space)]


def corners(space: Space) -> list[Point]:
    """Every combination of choices, with both ends of each range."""
    ends = [domain.ends(name) for name, domain in space.fields.items()]
    return [dict(zip(space.fields, values, strict=True)) for values in itertools.product(*ends)]


def some(space: Space, points: list[Point]) -> list[Experiment]:
    base = space.base("digits")
    return [space.experiment(base, point) for point in points]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_of_a_space_is_possible(name: str) -> None:
    space = load_space(name)
    points = [*corners(space), *islice(space.points(0), 5)]
    for point, experiment in zip(points, some(space, points), strict=True):
        spec_of(experiment)
        for key, value in space.settings(point).items():
            found = setting_of(experiment, key)
            assert found == value if value is not None else found is not None  # all steps of the grid


def test_structure_fits_the_other_presets() -> None:
    space = load_space("structure")
    for preset, layout in itertools.product(("mnist", "omniglot", "cifar10"), range(5)):
        space.experiment(space.base(preset), {"layout": layout})


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


def test_trials_share_the_stages_that_their_settings_do_not_change() -> None:
    structure, vae = load_space("structure"), load_space("vae")
    trials = some(structure, corners(structure))
    parses = {(t.bank.size, t.grid.patch, t.grid.stride, t.parse.order, t.steps) for t in trials}
    for stage, wanted in (("bank", {parse[:3] for parse in parses}), ("parse", parses)):
        assert len({fingerprint_of(trial, stage) for trial in trials}) == len(wanted) < len(trials)
    trials = some(vae, list(islice(vae.points(0), 10)))
    assert len({fingerprint_of(trial, "prior") for trial in trials}) == 1
    assert len({fingerprint_of(trial, "sample") for trial in trials}) == 10


def test_only_a_curve_opens_the_test_split() -> None:
    for curve, split in ((False, "valid"), (True, "test")):
        space = Space({"bank.size": Choice((10, 20))}, 2, curve=curve)
        assert driver.base_config(Options(space="mine.py"), space, {}).eval.split == split


def test_a_curve_stops_no_trial_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASHA, the default of the command, would end trials by their numbers."""
    schedulers: list[str] = []

    def run_missing(plan: Any, options: Options, *others: Any) -> None:
        schedulers.append(options.scheduler)

    monkeypatch.setattr(driver, "_run_missing", run_missing)
    for name in ("_write_results", "check"):
        monkeypatch.setattr(driver, name, lambda *arguments: None)
    monkeypatch.setattr(driver, "is_local", lambda: False)
    space, text = tmp_path / "mine.py", "from tune_spaces.space import Choice, Space\n"
    for curve in (False, True):
        space.write_text(text + f"SPACE = Space({{'bank.size': Choice((10, 20))}}, 2, curve={curve})\n")
        driver.run(Options(space=str(space), name=f"curve-{curve}", storage=str(tmp_path)), {})
    assert schedulers == ["asha", "none"]


@pytest.mark.parametrize(
    ("arguments", "error"),  # others are in tests/test_mistakes.py
    [
        ({"budgets": {"digit": {}}}, "did you mean digits"),
        ({"budgets": {"mnist": {"vae.image": 1}}}, "unknown key vae.image; did you mean vae.images"),
        ({"fields": {"vae.beta": Range(0.0, 1.0, log=True)}}, "vae.beta cannot have a range"),
        ({"fields": {"layout": Choice(({"grid.patch": 5}, {"grid.patches": 5}))}}, "key grid.patches"),
    ],
)
def test_a_wrong_space_is_refused_when_it_is_made(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        Space(**{"fields": {"bank.size": Choice((10, 20))}, "samples": 1, **arguments})
