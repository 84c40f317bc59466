"""The table that the bench prints, with the project's aims."""

from collections.abc import Mapping

from rich.table import Table

from npdraw_dist.bench.workload import Facts, Figures
from npdraw_dist.pipeline.progress import results

# The values that some figures should have.
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
    "waits_prior": "0",
    "waits_vae_relaxed": "0",
    "waits_vae_hard": "0",
    "kmeans_gpu_objective_vs_cpu": "1 +- 0.001",
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
    "serve_ready_s": "<= 8",
    "serve_decode_ms": "<= 100",
    "serve_parse_ms": "<= 100",
    "serve_compose_ms": "<= 100",
    "serve_edit_ms": "<= 100",
    "serve_sample_ms": "<= 100",
    "serve_complete_ms": "<= 100",
    "serve_next_ms": "<= 100",
    "serve_lost": "0",
    "serve_wrong": "0",
    "serve_failed": "0",
}


def show(found: Mapping[str, Facts | Figures]) -> None:
    """Prints the table: section, figure, value, aim."""
    table = Table()
    for column in ("section", "figure", "value", "aim"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for section, figures in found.items():
        for figure, value in figures.items():
            table.add_row(section, figure, _text(value), AIMS.get(figure, ""))
            section = ""
    results.print(table)


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"
