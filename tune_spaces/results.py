"""Writes the results of a sweep (results.parquet, best.yaml and the plots), and prints their table."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from npdraw_dist.config.load import dump
from npdraw_dist.config.schema import Experiment
from npdraw_dist.measure.metrics import METRICS
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.store import BEST, Store
from npdraw_dist.system.storage import write_atomically, write_text
from tune_spaces.plots import curve_plot, field_plots, pareto_plot, varied
from tune_spaces.space import IMAGES, SCORE
from tune_spaces.trials import TrialResult, label

# Column -> the metric that defines how its numbers are shown.
NUMBERS = {
    "train_images": METRICS["images_seen"],
    "valid_nll": METRICS["nll_iwae"],
    "bits_per_dim": METRICS["bits_per_dim"],
    "valid_prior_nll": METRICS["prior_nll"],
    "canvas_mse": METRICS["canvas_mse"],
    "parameters": METRICS["parameters"],
    "seconds": METRICS["train_seconds"],
    SCORE: METRICS["nll_iwae"],
    IMAGES: METRICS["images_seen"],
}
OF_TEST = {"test_nll": METRICS["nll_iwae"], "test_nll_se": METRICS["nll_iwae_se"]}  # only with `Space.curve`
SHOWN = ("valid_nll", "bits_per_dim", "valid_prior_nll", "canvas_mse", "parameters", "seconds")
LOG_WIDTH = 220
ORDER = ("finished", "stopped", "failed")


def ranked(results: Sequence[TrialResult], metric: str) -> list[TrialResult]:
    """Finished trials sorted by `metric`, best first; then stopped ones by their score; then failures."""

    def key(result: TrialResult) -> tuple[int, float]:
        number = result.numbers.get(metric) if result.finished else result.score
        return ORDER.index(result.status), float("inf") if number is None else number

    return sorted(results, key=key)


def _of_test(results: Sequence[TrialResult]) -> list[str]:
    """The columns of OF_TEST for which at least one trial has a number."""
    return [name for name in OF_TEST if any(name in result.numbers for result in results)]


def _column(values: Sequence[Any]) -> pa.Array:
    """The values of a setting, all as text if one of them is text, since vae.latents may be 16 or map:8."""
    if any(isinstance(value, str) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)


def write_table(run: Store, results: Sequence[TrialResult], metric: str) -> list[TrialResult]:
    """Writes results.parquet; returns the results in the table's order.

    A row has trial, status, the settings that vary, NUMBERS (null if missing) and reason. Where trials are
    scored on the test split, the columns of OF_TEST follow NUMBERS.
    """
    order = ranked(results, metric)
    keys = dict.fromkeys(key for result in order for key in result.settings)
    names = [*NUMBERS, *_of_test(order)]
    table = pa.table(
        {
            "trial": pa.array([result.trial for result in order], pa.string()),
            "status": pa.array([result.status for result in order], pa.string()),
            **{key: _column([result.settings.get(key) for result in order]) for key in keys},
            **{name: pa.array([r.numbers.get(name) for r in order], pa.float64()) for name in names},
            "reason": pa.array([result.reason for result in order], pa.string()),
        }
    )
    write_atomically(
        run.filesystem, run.path("results.parquet"), lambda stream: pq.write_table(table, stream)
    )
    return order


def write_results(
    run: Store, results: Sequence[TrialResult], metric: str, best: Experiment | None, curve: bool = False
) -> None:
    """Writes results.parquet, best.yaml and the plots; prints the table.

    best: the config of the best trial. curve: also plots the NLL against the number of training images.
    """
    order = write_table(run, results, metric)
    # A log has no width of its own; rich would assume 80 columns.
    screen = printed if printed.is_terminal else Console(highlight=False, width=LOG_WIDTH)
    screen.print(printed_table(order, metric))
    printed.print(run.shown("results.parquet"))
    if best is None:
        return
    opened = (
        "The sweep scored every trial on the test split, and chose nothing by it"
        if curve
        else "The sweep never opened the test split; this does, once"
    )
    text = (
        f"# The best trial, {order[0].trial}: {label(order[0].settings)}; {metric} "
        f"{order[0].numbers[metric]:.2f} nats, with the sweep's training budgets. {opened}:\n"
        f"# npdraw train --config best.yaml --name best\n{dump(best)}"
    )
    write_text(run.filesystem, run.path(BEST), text)
    printed.print(run.shown(BEST))
    finished = [result for result in order if result.finished]
    figures = {
        **({"curve.png": curve_plot(finished)} if curve else {}),
        "fields.png": field_plots(finished, metric),
        "pareto.png": pareto_plot(finished, metric, ("parameters", "seconds")),
    }
    for name, figure in figures.items():
        with run.writing(name) as path:
            figure.savefig(path, dpi=100)
        printed.print(run.shown(name))


def printed_table(order: Sequence[TrialResult], metric: str) -> Table:
    """The table on the screen, with the settings that differ and the trials in the given order."""
    keys, of_test, formats = varied(order), _of_test(order), NUMBERS | OF_TEST
    shown = ["train_images"] if of_test else []
    shown += [*of_test, metric, *(name for name in SHOWN if name != metric)]
    table = Table("trial", *keys, title=f"{len(order)} trials, by {metric}; NLL in nats per image")
    for column in shown:
        table.add_column(column, justify="right")
    table.add_column("end")
    for result in order:
        values = [result.settings.get(key) for key in keys]
        settings = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        numbers = [formats[name].format(result.numbers.get(name)) for name in shown]
        end = result.status if result.finished else f"{result.status}: {result.reason}"
        table.add_row(result.trial, *settings, *numbers, end)
    return table
