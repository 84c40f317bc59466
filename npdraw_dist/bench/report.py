"""Runs the sections, and shows what they found."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from npdraw_dist.bench import capacity, clustering, machine, parsing, rendering, training_step
from npdraw_dist.bench.workload import Facts, Figures, Workload, open_workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.progress import console

# In this order: the first lines say what was measured on.
SECTIONS: Mapping[str, Callable[[Workload], Facts | Figures]] = {
    "machine": machine.run,
    "bank": clustering.run,
    "parse": parsing.run,
    "drawing": rendering.run,
    "step": training_step.run,
}

# What a figure should be, where the project has set an aim.
AIMS = {
    "kmeans_speedup_vs_sklearn": ">= 10",
    "kmeans_objective_vs_sklearn": "<= 1.01",
    "sharded_objective_difference": "<= 1e-9",
    "sharded_centroid_difference": "<= 1e-6",
    "parse_time_vs_matmul": "<= 2",
    "render_speedup_vs_dense": ">= 30",
    "sample_speedup_vs_recompute": ">= 20",
    "vae_step_flops_utilization": ">= 0.55",
    "vae_step_speedup_vs_dense": ">= 8",
    "vae_step_memory_vs_dense": "<= 0.25",
    "data_wait_share": "<= 0.02",
    "data_wait_share_streamed": "<= 0.02",
    "startup_s": "<= 25",
    "ray_loop_ratio": ">= 0.97",
    "two_worker_ratio": ">= 0.95",
    "plan_error_60000": "0 +- 0.3",
    "plan_error_600000": "0 +- 0.3",
    "scale_cost_spread": "<= 0.15",
    "scale_driver_memory_growth": "<= 0.2",
    "scale_worker_memory_growth": "<= 0.2",
    "serve_lost": "0",
    "serve_wrong": "0",
    "serve_failed": "0",
}


def measure(
    experiment: Experiment, quick: bool, scale: bool, dense: bool, serve: bool = False
) -> dict[str, Facts | Figures]:
    """section -> its figures. `dense` adds the reference's VAE step, `scale` and `serve` their sections."""
    work = open_workload(experiment, quick, dense)
    from npdraw_dist.bench import shard_costs, training_loop  # Ray takes seconds to import

    sections = {**SECTIONS, "shards": shard_costs.run, "training": training_loop.run}
    if scale:
        from npdraw_dist.bench import scaling

        sections["scale"] = scaling.run
    if serve:
        from npdraw_dist.bench import editor_load

        sections["serve"] = editor_load.run
    found: dict[str, Facts | Figures] = {}
    for name, run in sections.items():
        console.print(f"measuring {name} ...")
        found[name] = run(work)
    found["machine"]["peak_rss_mb"] = machine.peak_rss_mb()
    if scale:
        found["plan"] = capacity.errors(flat(found), scaling.SIZES)
    return found


def show(found: Mapping[str, Facts | Figures]) -> None:
    """Prints the table: section, figure, value, aim."""
    table = Table()
    for column in ("section", "figure", "value", "aim"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for section, figures in found.items():
        for figure, value in figures.items():
            table.add_row(section, figure, _text(value), AIMS.get(figure, ""))
            section = ""
    console.print(table)


def write(found: Mapping[str, Facts | Figures], path: Path) -> None:
    """All figures as one flat JSON object."""
    path.write_text(json.dumps(flat(found), indent=2, allow_nan=False) + "\n")


def flat(found: Mapping[str, Facts | Figures]) -> dict[str, Any]:
    """figure -> value, of all sections."""
    return {figure: value for figures in found.values() for figure, value in figures.items()}


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"
