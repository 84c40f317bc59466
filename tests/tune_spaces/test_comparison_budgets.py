"""The budgets of a comparison's winners: corrected where a rate was wrong, kept where the plan has them."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.fake_trainings import SECONDS, FakeTrainings, options, plan_of, the_space, third_is_best
from tune_spaces import comparison


def test_rates_that_are_not_todays_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    monkeypatch.setattr(comparison, "console", SimpleNamespace(print=said.append))
    early = [f"vqvae-{number}" for number in range(5)]  # they ended early: their time says nothing
    fake = FakeTrainings(third_is_best, later={"npdraw": 1.2, "vae": 0.4}, ended=early)
    comparison.run(options(tmp_path), the_space(), {}, fake)
    lines = [line for line in said if "the median" in line]
    assert [line.split(";")[0] for line in lines] == [
        "vae: the median of its trials took 0.40 of its 30 core-seconds"
    ]


def test_the_seeds_of_a_winner_take_the_time_whatever_its_rate_said(tmp_path: Path) -> None:
    trainings = FakeTrainings(third_is_best, later={"npdraw": 1.25, "vae": 1.05, "vqvae": 0.8})
    comparison.run(options(tmp_path), the_space(), {}, trainings)
    plan, spent = plan_of(tmp_path), dict[str, list[float]]()
    for final in plan["finals"]:
        if final["role"] == "seed":
            spent.setdefault(final["kind"], []).append(final["core_seconds"])
    assert spent["npdraw"] == pytest.approx([SECONDS] * 2, rel=0.03)
    assert spent["vqvae"] == pytest.approx([SECONDS] * 2, rel=0.03)
    assert spent["vae"] == pytest.approx([1.05 * SECONDS] * 2, rel=0.03)  # near enough: as it was
    assert plan["budgets"]["vae"] == plan["rates"]["vae-2"]["images"]
    assert plan["budgets"]["npdraw"] < 0.85 * plan["rates"]["npdraw-2"]["images"]
    assert {j.budget for j in trainings.trained if j.name == "npdraw-x2"} == {2 * plan["budgets"]["npdraw"]}

    # The budgets stay, also where trials took another time, as on another machine.
    before = len(trainings.trained)
    plan["budgets"]["npdraw"] = 3200
    del plan["finals"]
    for folder in ("seeds", "longer"):
        shutil.rmtree(tmp_path / "c" / folder)
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(plan))
    comparison.run(options(tmp_path), the_space(), {}, trainings)
    assert plan_of(tmp_path)["budgets"]["npdraw"] == 3200
    last = trainings.trained[before:]
    assert {j.budget for j in last if j.folder == "seeds" and j.kind == "npdraw"} == {3200}


def test_a_copied_plan_repeats_the_budgets_on_a_machine_of_another_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(comparison, "console", SimpleNamespace(print=said.append))
    comparison.run(options(tmp_path), the_space(), {}, FakeTrainings(third_is_best))
    first = plan_of(tmp_path)
    for key in ("winners", "budgets", "finals", "spent"):
        del first[key]
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(first))
    slow = FakeTrainings(third_is_best, later={"npdraw": 1.7, "vae": 1.5, "vqvae": 1.8})
    comparison.run(options(tmp_path), the_space(), {}, slow)
    assert Counter(job.folder for job in slow.trained) == {"trials": 18, "seeds": 6, "longer": 6}
    plan = plan_of(tmp_path)
    assert plan["budgets"] == {
        kind: first["rates"][f"{kind}-2"]["images"] for kind in ("npdraw", "vae", "vqvae")
    }
    assert not [line for line in said if "the median" in line]  # its rates are not wrong, the machine is slow


def test_a_budget_that_stays_is_of_the_same_winner(tmp_path: Path) -> None:
    trainings = FakeTrainings(third_is_best, failing=["vae-2"])
    comparison.run(options(tmp_path), the_space(), {}, trainings)
    first = plan_of(tmp_path)
    assert first["winners"]["vae"] == "vae-0"
    first["budgets"]["vae"] = 3200  # of vae-0
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(first))
    for folder in ("seeds", "longer"):
        shutil.rmtree(tmp_path / "c" / folder)
    comparison.run(options(tmp_path, retry_failed=True), the_space(), {}, FakeTrainings(third_is_best))
    plan = plan_of(tmp_path)
    assert plan["winners"]["vae"] == "vae-2"
    assert plan["budgets"]["vae"] == plan["rates"]["vae-2"]["images"]
