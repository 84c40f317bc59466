"""Results of trials, ranking, the table, Pareto fronts and plots, against answers worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.axes import Axes
from pyarrow import fs

from npdraw_dist.config.load import build, read_preset
from npdraw_dist.pipeline.store import Store
from tune_spaces.plots import curve_plot, field_plots, pareto_plot
from tune_spaces.results import write_results
from tune_spaces.trials import TrialResult, forget_failed, read_results, write_result

METRIC = "valid_nll"
PNG = b"\x89PNG"


def finished(
    trial: str, nll: float, parameters: float = 10, seconds: float = 5, **settings: Any
) -> TrialResult:
    numbers = {
        **{"valid_nll": nll, "valid_prior_nll": 30.0, "bits_per_dim": nll / 500, "canvas_mse": 0.01},
        **{"parameters": parameters, "seconds": seconds, "score": nll + 5, "images": 100},
    }
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return TrialResult(trial, "finished", {}, named, numbers)


FAILED = TrialResult("f", "failed", {}, {"bank.size": 20, "prior.heads": "chained"}, reason="not finite")
STOPPED = TrialResult(
    "s", "stopped", {}, {"bank.size": 50, "prior.heads": "chained"}, {"score": 99.0, "images": 50}
)
DONE = [
    finished("b", 70.0, 10, 9, bank__size=20, prior__heads="chained"),
    finished("a", 60.0, 30, 9, bank__size=50, prior__heads="chained"),
    finished("c", 80.0, 20, 4, bank__size=100, prior__heads="independent"),
]
RESULTS = [FAILED, DONE[0], STOPPED, *DONE[1:]]


@pytest.fixture
def curve() -> list[TrialResult]:
    cases = [("npdraw", 100, 90, 1), ("npdraw", 1000, 80, 2), ("vae", 1000, 85, 3), ("vae", 100, 99, 4)]
    found = []
    for kind, images, nll, error in cases:
        found.append(finished(f"{kind}{images}", nll - 5, data__fraction=images / 1000, model__kind=kind))
        found[-1].numbers.update({"train_images": images, "test_nll": nll, "test_nll_se": error})
    return found


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(fs.LocalFileSystem(), str(tmp_path))


def first_line(axes: Axes) -> list[list[float]]:
    return [np.asarray(values).tolist() for values in axes.lines[0].get_data()]


def test_results_are_kept_and_the_first_one_stays(run: Store, tmp_path: Path) -> None:
    for result in RESULTS:
        write_result(run, result)
    write_result(run, TrialResult("a", "stopped", {}, {}))
    (tmp_path / "results" / "x.json.1234abcd.part").write_text('{"trial": "x"')  # killed while writing
    assert read_results(run) == sorted(RESULTS, key=lambda result: result.trial)
    forget_failed(run)
    assert [result.trial for result in read_results(run)] == ["a", "b", "c", "s"]


def test_the_files_are_written(run: Store, tmp_path: Path) -> None:
    write_results(run, [FAILED, STOPPED], METRIC, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.parquet"]  # none finished: no best
    best = build(read_preset("digits"))
    write_results(run, RESULTS, METRIC, best)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.column("trial").to_pylist() == ["a", "b", "c", "s", "f"]
    assert table.column("bank.size").to_pylist() == [50, 20, 100, 50, 20]
    assert table.column("prior.heads").to_pylist()[2] == "independent"
    assert table.column("valid_nll").to_pylist() == [60.0, 70.0, 80.0, None, None]
    assert not [name for name in table.column_names if "test" in name]
    assert table.column("reason").to_pylist()[-1] == "not finite"
    assert {str(table.schema.field(name).type) for name in ("valid_nll", "seconds", "images")} == {"double"}
    text = (tmp_path / "best.yaml").read_text()
    assert "The best trial, a" in text.splitlines()[0]
    assert build(yaml.safe_load(text)) == best
    for name in ("fields.png", "pareto.png"):
        assert (tmp_path / name).read_bytes()[:4] == PNG


def test_a_setting_may_be_a_number_or_a_word(run: Store, tmp_path: Path) -> None:
    some = [finished("a", 60.0, vae__latents=16), finished("b", 70.0, vae__latents="map:2"), FAILED]
    write_results(run, some, METRIC, build(read_preset("digits")))
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.column("vae.latents").to_pylist() == ["16", "map:2", None]
    assert table.column("bank.size").to_pylist() == [None, None, 20]


def test_each_field_has_its_panel_with_medians() -> None:
    extra = finished("d", 90.0, bank__size=50, prior__heads="chained")
    figure = field_plots([*DONE, extra], METRIC)
    size, heads = (axis for axis in figure.axes if axis.get_visible())
    assert size.get_xlabel() == "bank.size"
    assert [text.get_text() for text in size.get_xticklabels()] == ["20", "50", "100"]
    assert first_line(size)[1] == [70.0, 75.0, 80.0]
    assert first_line(heads)[1] == [70.0, 80.0]
    found = sorted(np.asarray(size.collections[0].get_offsets()).tolist())
    assert found == [[0, 70], [1, 60], [1, 90], [2, 80]]


def test_many_numbers_have_an_axis_of_numbers() -> None:
    many = [finished(str(n), 70.0, prior__dropout=0.1 * n, prior__depth=n % 5) for n in range(9)]
    dropout, depth = field_plots(many, METRIC).axes[:2]
    np.testing.assert_allclose(np.asarray(dropout.collections[0].get_offsets())[:, 0], 0.1 * np.arange(9))
    assert [text.get_text() for text in depth.get_xticklabels()] == list("01234")


def test_the_front_is_what_none_beats_and_is_drawn() -> None:
    costs, more = np.random.default_rng(0).integers(0, 12, (2, 40)).tolist()
    points = [(a, 12 - a + b) for a, b in zip(costs, more, strict=True)]  # some are equal
    best = {a for a in points if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)}
    assert 2 < len(best) < 40
    (axis,) = pareto_plot([finished("t", nll, cost) for cost, nll in points], METRIC, ["parameters"]).axes
    assert [*zip(*first_line(axis), strict=True)] == sorted(best)
    parameters, seconds = pareto_plot(DONE, METRIC, ("parameters", "seconds")).axes
    assert sorted(zip(*first_line(parameters), strict=True)) == [(10, 70), (30, 60)]
    assert sorted(zip(*first_line(seconds), strict=True)) == [(4, 80), (9, 60)]


def test_a_curve_has_a_line_for_each_kind_by_images(curve: list[TrialResult]) -> None:
    (axis,) = curve_plot(curve).axes
    lines: dict[str, Any] = {
        text: container for container, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    assert set(lines) == {"NP-DRAW, test", "VAE, test", "NP-DRAW, validation", "VAE, validation"}
    for result in curve:  # of one test image each, and of the kind of the preset
        del result.numbers["test_nll_se"], result.settings["model.kind"]
    (axis,) = curve_plot(curve).axes
    assert axis.get_legend_handles_labels()[1] == ["validation", "test"]
    data, _, (bars,) = lines["VAE, test"]
    assert np.asarray(data.get_data()).tolist() == [[100, 1000], [99, 85]]
    assert [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()] == [4, 3]
    assert np.asarray(lines["NP-DRAW, validation"].get_data()).tolist() == [[100, 1000], [85, 75]]
    assert axis.get_xscale() == "log"


def test_the_best_of_a_curve_is_of_validation(run: Store, tmp_path: Path, curve: list[TrialResult]) -> None:
    curve[2].numbers["test_nll"] = 1.0  # the best on test, not on validation
    write_results(run, curve, "valid_nll", build(read_preset("digits")), curve=True)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    found = [(row["model.kind"], row["train_images"], row["test_nll"]) for row in rows]
    assert found == [("npdraw", 1000, 80), ("vae", 1000, 1), ("npdraw", 100, 90), ("vae", 100, 99)]
    assert (tmp_path / "curve.png").read_bytes()[:4] == PNG
    assert "The best trial, npdraw1000" in (tmp_path / "best.yaml").read_text().splitlines()[0]
