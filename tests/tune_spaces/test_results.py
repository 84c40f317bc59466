"""Results of trials, ranking, the table, Pareto fronts and plots, against answers worked out by hand."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.axes import Axes
from pyarrow import fs
from rich.console import Console

from npdraw_dist.config.load import build, read_preset
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store
from tune_spaces.plots import field_plots, pareto_front, pareto_plot, positions
from tune_spaces.results import printed_table, ranked, results_table, write_results
from tune_spaces.space import require_metric
from tune_spaces.trials import TrialResult, forget_failed, read_results, write_result

METRIC = "valid_nll"


def finished(
    trial: str, nll: float, parameters: float = 10, seconds: float = 5, **settings: Any
) -> TrialResult:
    numbers = {
        "valid_nll": nll,
        "valid_prior_nll": 30.0,
        "bits_per_dim": nll / 500,
        "canvas_mse": 0.01,
        "parameters": parameters,
        "seconds": seconds,
        "score": nll + 5,
        "images": 100,
    }
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return TrialResult(trial, "finished", {}, named, numbers, nll + 5)


RESULTS = [
    TrialResult(
        "f", "failed", {}, {"bank.size": 20, "prior.heads": "chained"}, reason="the loss turned non-finite"
    ),
    finished("b", 70.0, 10, 9, bank__size=20, prior__heads="chained"),
    TrialResult(
        "s", "stopped", {}, {"bank.size": 50, "prior.heads": "chained"}, {"score": 99.0, "images": 50}, 99.0
    ),
    finished("a", 60.0, 30, 9, bank__size=50, prior__heads="chained"),
    finished("c", 80.0, 20, 4, bank__size=100, prior__heads="independent"),
]


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(fs.LocalFileSystem(), str(tmp_path))


def drawn_points(axes: Axes) -> list[list[float]]:
    """The x and the y values of the first line."""
    return [np.asarray(values).tolist() for values in axes.lines[0].get_data()]


def test_the_pareto_front_is_what_none_beats() -> None:
    assert pareto_front([(1, 9), (2, 9), (2, 5), (3, 6), (4, 1), (4, 1), (5, 0.5)]) == [
        True,
        False,
        True,
        False,
        True,
        True,
        True,
    ]
    rng = np.random.default_rng(0)
    points = [(float(a), float(b)) for a, b in rng.integers(0, 6, (40, 2))]
    expected = []
    for a in points:
        beaten = any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)
        expected.append(not beaten)
    assert pareto_front(points) == expected


def test_the_best_comes_first_then_the_stopped_then_the_failed() -> None:
    assert [result.trial for result in ranked(RESULTS, METRIC)] == ["a", "b", "c", "s", "f"]


def test_results_are_kept_and_the_first_one_stays(run: Store) -> None:
    for result in RESULTS:
        write_result(run, result)
    write_result(run, TrialResult("a", "stopped", {}, {}))
    assert read_results(run) == sorted(RESULTS, key=lambda result: result.trial)
    forget_failed(run)
    assert [result.trial for result in read_results(run)] == ["a", "b", "c", "s"]


def test_a_half_written_result_is_not_read(run: Store, tmp_path: Path) -> None:
    write_result(run, RESULTS[1])
    (tmp_path / "results" / "x.json.1234abcd.part").write_text('{"trial": "x"')  # killed while writing
    assert read_results(run) == [RESULTS[1]]


def test_the_table_of_results_has_a_typed_row_a_trial() -> None:
    table = results_table(RESULTS)
    assert table.column("trial").to_pylist() == ["f", "b", "s", "a", "c"]
    assert table.column("bank.size").to_pylist() == [20, 20, 50, 50, 100]
    assert table.column("prior.heads").to_pylist()[-1] == "independent"
    assert table.column("valid_nll").to_pylist() == [None, 70.0, None, 60.0, 80.0]
    assert not [name for name in table.column_names if "test" in name]
    assert table.column("reason").to_pylist()[0] == "the loss turned non-finite"
    assert {str(table.schema.field(name).type) for name in ("valid_nll", "seconds", "images")} == {"double"}


def test_the_files_are_written(run: Store, tmp_path: Path) -> None:
    best = build(read_preset("digits"))
    write_results(run, RESULTS, METRIC, best)
    assert pq.read_table(tmp_path / "results.parquet").column("trial").to_pylist() == [
        "a",
        "b",
        "c",
        "s",
        "f",
    ]
    text = (tmp_path / "best.yaml").read_text()
    assert "The best trial, a" in text.splitlines()[0]
    assert build(yaml.safe_load(text)) == best
    for name in ("fields.png", "parallel.png", "pareto.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_without_a_finished_trial_there_is_no_best(run: Store, tmp_path: Path) -> None:
    write_results(run, [RESULTS[0], RESULTS[2]], METRIC, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.parquet"]


def test_the_printed_table_shows_what_differs() -> None:
    out = Console(width=250, file=io.StringIO(), record=True)
    same = [
        finished("a", 60, prior__depth=3, bank__size=20),
        finished("b", 70, prior__depth=3, bank__size=50),
    ]
    out.print(printed_table(same, METRIC))
    text = out.export_text()
    assert "bank.size" in text
    assert "prior.depth" not in text
    assert "60.00" in text


def test_each_field_has_its_panel_with_medians() -> None:
    done = [result for result in RESULTS if result.status == "finished"]
    extra = finished("d", 90.0, bank__size=50, prior__heads="chained")
    figure = field_plots([*done, extra], METRIC)
    size, heads = (axis for axis in figure.axes if axis.get_visible())
    assert size.get_xlabel() == "bank.size"
    assert [text.get_text() for text in size.get_xticklabels()] == ["20", "50", "100"]
    assert drawn_points(size)[1] == [70.0, 75.0, 80.0]
    assert drawn_points(heads)[1] == [70.0, 80.0]
    assert sorted(np.asarray(size.collections[0].get_offsets()).tolist()) == [
        [0, 70],
        [1, 60],
        [1, 90],
        [2, 80],
    ]


def test_the_front_is_drawn() -> None:
    done = [result for result in RESULTS if result.status == "finished"]
    figure = pareto_plot(done, METRIC, ("parameters", "seconds"))
    parameters, seconds = figure.axes
    assert sorted(zip(*drawn_points(parameters), strict=True)) == [(10, 70), (30, 60)]
    assert sorted(zip(*drawn_points(seconds), strict=True)) == [(4, 80), (9, 60)]


def test_numbers_and_names_have_positions() -> None:
    assert positions([50, 25, 50]) == ([1.0, 0.0, 1.0], [(0.0, "25"), (1.0, "50")])
    assert positions(["b", "a"]) == ([1.0, 0.0], [(0.0, "a"), (1.0, "b")])
    assert positions([0.1 * n for n in range(9)])[1] is None


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="unknown --metric 'valid_nl'; did you mean valid_nll"):
        require_metric("valid_nl")
    with pytest.raises(UserError, match="test numbers are reported but never decide"):
        require_metric("test_nll")
