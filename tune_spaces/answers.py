"""What a sweep answers: results.parquet, the table, best.yaml."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from npdraw_dist.config.load import dump
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.storage import write_beside, write_text
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import Store
from tune_spaces.plots import field_plots, parallel_plot, pareto_plot
from tune_spaces.records import IMAGES, SCORE, Record

# Column -> decimals in the table. NLLs are in nats per image.
NUMBERS = {
    "valid_nll": 2,
    "test_nll": 2,
    "bits_per_dim": 4,
    "valid_prior_nll": 2,
    "test_prior_nll": 2,
    "canvas_mse": 4,
    "parameters": 0,
    "seconds": 0,
    SCORE: 2,
    IMAGES: 0,
}
SHOWN = ("valid_nll", "test_nll", "bits_per_dim", "test_prior_nll", "canvas_mse", "parameters", "seconds")
LOG_WIDTH = 220
ORDER = {"finished": 0, "stopped": 1, "failed": 2}


def ranked(records: Sequence[Record], metric: str) -> list[Record]:
    """Finished trials by `metric`, best first; then those stopped early by their score; then failures."""

    def key(record: Record) -> tuple[int, float]:
        number = record.numbers.get(metric) if record.status == "finished" else record.score
        return ORDER[record.status], float("inf") if number is None else number

    return sorted(records, key=key)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, loss): no other is as good in both and better in one."""
    return [
        not any(a <= cost and b <= loss and (a < cost or b < loss) for a, b in points)
        for cost, loss in points
    ]


def results_table(records: Sequence[Record]) -> pa.Table:
    """A row a trial: trial, status, the swept settings, NUMBERS (missing ones null), reason."""
    keys = list(dict.fromkeys(key for record in records for key in record.settings))
    columns: dict[str, pa.Array] = {
        "trial": pa.array([record.trial for record in records], pa.string()),
        "status": pa.array([record.status for record in records], pa.string()),
    }
    for key in keys:
        columns[key] = pa.array([record.settings.get(key) for record in records])
    for name in NUMBERS:
        columns[name] = pa.array([record.numbers.get(name) for record in records], pa.float64())
    columns["reason"] = pa.array([record.reason for record in records], pa.string())
    return pa.table(columns)


def write_answers(run: Store, records: Sequence[Record], metric: str, best: Experiment | None) -> None:
    """Writes results.parquet, best.yaml and the plots, and prints the table. best: of the best trial."""
    order = ranked(records, metric)
    table = results_table(order)
    write_beside(run.filesystem, run.path("results.parquet"), lambda stream: pq.write_table(table, stream))
    # A log has no width of its own, and rich would take 80 columns.
    screen = console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)
    screen.print(printed(order, metric))
    files = ["results.parquet"]
    if best is not None:
        write_text(run.filesystem, run.path("best.yaml"), _best_text(order[0], metric, best))
        files += ["best.yaml", *_plots(run, [r for r in order if r.status == "finished"], metric)]
    for file in files:
        console.print(run.shown(file))


def _best_text(record: Record, metric: str, best: Experiment) -> str:
    return (
        f"# The best trial, {record.trial}: {record.label}; {metric} {record.numbers[metric]:.2f}, "
        f"test NLL {record.numbers['test_nll']:.2f} nats, with the sweep's training budgets.\n"
        f"# python -m npdraw_dist.train --config best.yaml --name best\n{dump(best)}"
    )


def _plots(run: Store, finished: Sequence[Record], metric: str) -> list[str]:
    costs = ("parameters", "seconds")
    fronts = {cost: pareto([(r.numbers[cost], r.numbers[metric]) for r in finished]) for cost in costs}
    figures: dict[str, Any] = {
        "fields.png": field_plots(finished, metric),
        "parallel.png": parallel_plot(finished, metric),
        "pareto.png": pareto_plot(finished, metric, fronts),
    }
    for name, figure in figures.items():
        with run.writing(name) as path:
            figure.savefig(path, dpi=100)
    return list(figures)


def printed(order: Sequence[Record], metric: str) -> Table:
    """The table for a person: only settings that differ, the best first."""
    keys = list(dict.fromkeys(key for record in order for key in record.settings))
    keys = [key for key in keys if len({str(record.settings.get(key)) for record in order}) > 1]
    shown = [metric, *(name for name in SHOWN if name != metric)]
    table = Table(title=f"{len(order)} trials, by {metric}; NLL in nats per image")
    for column in ("trial", *keys):
        table.add_column(column)
    for column in shown:
        table.add_column(column, justify="right")
    table.add_column("end")
    for record in order:
        numbers = [_shown(name, record.numbers.get(name)) for name in shown]
        settings = [_short(record.settings.get(key)) for key in keys]
        end = record.status if record.status == "finished" else f"{record.status}: {record.reason}"
        table.add_row(record.trial, *settings, *numbers, end)
    return table


def _shown(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:,.{NUMBERS[name]}f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
