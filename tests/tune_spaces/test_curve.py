"""A curve: every trial is scored on the test split, none is chosen or stopped by it, and the plot has all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from pyarrow import fs

from npdraw_dist.config.load import build, read_preset
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store
from tests.helpers.spaces import load_space
from tests.tune_spaces.test_sweep_smoke import command, run
from tune_spaces import driver
from tune_spaces.plots import curve_plot
from tune_spaces.results import printed_table, write_results
from tune_spaces.space import Choice, Space
from tune_spaces.sweep import Options
from tune_spaces.trials import TrialResult

CASES = [
    ("npdraw", 100, 90.0, 1.0),
    ("npdraw", 1000, 80.0, 2.0),
    ("vae", 1000, 85.0, 3.0),
    ("vae", 100, 99, 4),
]
RESULTS = [
    TrialResult(
        f"{kind}{images}",
        "finished",
        {},
        {"data.fraction": images / 1000, "model.kind": kind},
        {
            **{"train_images": images, "valid_nll": nll - 5, "test_nll": nll, "test_nll_se": error},
            **{"bits_per_dim": 0.1, "parameters": 10, "seconds": 5},
        },
        nll,
    )
    for kind, images, nll, error in CASES
]


def test_more_data_has_each_kind_at_each_share_with_equal_steps() -> None:
    space = load_space("more_data")
    base = driver.base_config(Options(space="more_data"), space, {"data": {"path": "fonts"}})
    trials = [space.experiment(base, {"case": index}) for index in range(space.samples)]
    assert {(t.model.kind, t.data.fraction) for t in trials} == {
        (kind, fraction) for kind in ("npdraw", "vae") for fraction in (1.0, 0.1, 0.01, 0.001)
    }
    budgets = {(t.prior.images, t.vae.images, t.train.batch_size, t.seed, t.eval.images) for t in trials}
    assert len(budgets) == 1
    assert trials[0].vae.images >= 500_000


def test_only_a_curve_opens_the_test_split() -> None:
    flags: dict[str, Any] = {"eval": {"split": "test"}}
    for curve, split in ((False, "valid"), (True, "test")):
        space = Space({"bank.size": Choice((10, 20))}, 2, curve=curve)
        assert driver.base_config(Options(space="mine.py"), space, {}).eval.split == split
    with pytest.raises(UserError, match="never opens the test split"):
        driver.base_config(Options(space="smoke"), load_space("smoke"), flags)


def test_a_curve_stops_no_trial_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASHA, the default of the command, would end trials by their numbers."""
    asked: list[str] = []

    def run_missing(plan: Any, options: Options, *others: Any) -> None:
        asked.append(options.scheduler)

    monkeypatch.setattr(driver, "_run_missing", run_missing)
    monkeypatch.setattr(driver, "_write_results", lambda *arguments: None)
    monkeypatch.setattr(driver, "check", lambda *arguments: None)
    monkeypatch.setattr(driver, "is_local", lambda: False)
    space = tmp_path / "mine.py"
    for curve in (False, True):
        space.write_text(
            "from tune_spaces.space import Choice, Space\n"
            f"SPACE = Space({{'bank.size': Choice((10, 20))}}, samples=2, curve={curve})\n"
        )
        driver.run(Options(space=str(space), name=f"curve-{curve}", storage=str(tmp_path)), {})
    assert asked == ["asha", "none"]


def test_the_curve_has_a_line_for_each_kind_by_images() -> None:
    (axis,) = curve_plot(RESULTS).axes
    lines = {text: container for container, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    assert set(lines) == {"NP-DRAW, test", "VAE, test", "NP-DRAW, validation", "VAE, validation"}
    test, valid = lines["VAE, test"], lines["NP-DRAW, validation"]
    assert isinstance(test, ErrorbarContainer)
    assert isinstance(valid, Line2D)
    data, _, (bars,) = test
    assert np.asarray(data.get_data()).tolist() == [[100, 1000], [99, 85]]
    assert [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()] == [4, 3]
    assert np.asarray(valid.get_data()).tolist() == [[100, 1000], [85, 75]]
    assert axis.get_xscale() == "log"


def test_the_results_of_a_curve_have_test_numbers_and_the_best_is_of_validation(tmp_path: Path) -> None:
    swapped = [*RESULTS]
    lucky = RESULTS[2]  # the best on test, not on validation
    swapped[2] = TrialResult(**{**vars(lucky), "numbers": {**lucky.numbers, "test_nll": 1.0}})
    run = Store(fs.LocalFileSystem(), str(tmp_path))
    write_results(run, swapped, "valid_nll", build(read_preset("digits")), curve=True)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["model.kind"], row["train_images"], row["test_nll"]) for row in rows] == [
        ("npdraw", 1000, 80.0),
        ("vae", 1000, 1.0),
        ("npdraw", 100, 90.0),
        ("vae", 100, 99.0),
    ]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    first = (tmp_path / "best.yaml").read_text().splitlines()[0]
    assert "The best trial, npdraw1000" in first
    assert "chose nothing by it" in first
    headers = {column.header for column in printed_table(RESULTS, "valid_nll").columns}
    assert {"train_images", "test_nll", "test_nll_se"} <= headers


SPACE = """
from tune_spaces.space import Choice, Space
from tune_spaces.spaces.smoke import SPACE as SMOKE

CASES = tuple({"data.fraction": f, "model.kind": kind} for kind in ("npdraw", "vae") for f in (0.2, 0.05))
SPACE = Space(
    {"case": Choice(CASES)}, samples=4,
    budgets={"digits": {**SMOKE.budgets["digits"], **CASES[0]}},
    curve=True,
)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_curve_of_tiny_trials(tmp_path: Path) -> None:
    space = tmp_path / "curve.py"
    space.write_text(SPACE)
    run(*command(tmp_path, "--space", str(space)))
    rows = pq.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 4
    counts = {row["train_images"] for row in rows}
    assert len(counts) == 2
    assert max(counts) / min(counts) == pytest.approx(4, rel=0.3)
    for row in rows:
        metrics = json.loads((tmp_path / "s" / "trials" / row["trial"] / "metrics.json").read_text())
        assert (row["test_nll"], row["valid_nll"]) == (metrics["test/nll_iwae"], metrics["valid/nll_iwae"])
        assert (tmp_path / "s" / "trials" / row["trial"] / "test_split.json").exists()
    assert (tmp_path / "s" / "curve.png").exists()
