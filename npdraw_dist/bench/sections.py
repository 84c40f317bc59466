"""The sections of the bench in order, their measurement, and the table of their figures."""

from collections.abc import Sequence
from pkgutil import resolve_name

from rich.table import Table

from npdraw_dist.bench.machine import peak_rss_mb
from npdraw_dist.bench.workload import Facts, Workload
from npdraw_dist.config.load import names_in
from npdraw_dist.pipeline.progress import console, results

# Section -> its function of a Workload. Each is imported when it runs: Ray takes seconds to import.
SECTIONS = {
    "machine": "machine:run",  # first: what the others were measured on
    "bank": "clustering:run",
    "parse": "parsing:run",
    "drawing": "dense:run",
    "step": "steps:run",
    "training": "training_loop:run",
}

# The values that some figures should have.
AIMS = {
    "kmeans_speedup_vs_sklearn": ">= 10",
    "kmeans_objective_vs_sklearn": "<= 1.01",
    "kmeans_gpu_objective_vs_cpu": "1 +- 0.001",
    "render_speedup_vs_dense": ">= 30",
    "sample_speedup_vs_recompute": ">= 20",
    "vae_step_flops_utilization": ">= 0.55",
    "vae_step_speedup_vs_dense": ">= 8",
    "vae_step_memory_vs_dense": "<= 0.25",
    **dict.fromkeys(("data_wait_share", "data_wait_share_streamed"), "<= 0.02"),
    "startup_s": "<= 25",
    "ray_loop_ratio": ">= 0.97",
    "two_worker_ratio": ">= 0.95",
}


def chosen(only: str | None) -> list[str]:
    """The sections to measure: those named in `only`, and `machine`. Raises UserError on an unknown name."""
    if only is None:
        return list(SECTIONS)
    names = ["machine", *names_in("--only", "section", only, list(SECTIONS))]
    return [name for name in SECTIONS if name in names]


def measure(work: Workload, names: Sequence[str]) -> Facts:
    """Measures the sections and prints the table: section, figure, value, aim. Figure -> value, of all."""
    found: dict[str, Facts] = {}
    for name in names:
        console.print(f"measuring {name} ...")
        found[name] = resolve_name(f"npdraw_dist.bench.{SECTIONS[name]}")(work)
    found["machine"]["peak_rss_mb"] = peak_rss_mb()
    table = Table("section", "figure", "value", "aim")
    table.columns[2].justify = "right"
    for section, figures in found.items():
        for figure, value in figures.items():
            table.add_row(section, figure, _text(value), AIMS.get(figure, ""))
            section = ""
    results.print(table)
    return {figure: value for figures in found.values() for figure, value in figures.items()}


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"
