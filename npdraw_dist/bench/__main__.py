"""npdraw bench: measures this machine; prints a table and writes flat JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from npdraw_dist.config.cli import PRESET, PresetCommand, own_flags, parse_flags, run_command
from npdraw_dist.config.load import names_in, resolve
from npdraw_dist.config.schema import (
    BankConfig,
    DataConfig,
    GridConfig,
    ParseConfig,
    PriorConfig,
    Seed,
    TrainConfig,
    VAEConfig,
)
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import require_extra

if TYPE_CHECKING:
    from npdraw_dist.bench.workload import Facts

SECTIONS = ("machine", "bank", "parse", "drawing", "step", "operations", "training")

# Figure -> its aim, which the table shows beside the value.
AIMS = {
    "kmeans_speedup_vs_sklearn": ">= 10",
    "kmeans_objective_vs_sklearn": "<= 1.01",
    "kmeans_gpu_objective_vs_cpu": "1 +- 0.001",
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
}


class Options(BaseModel):
    """The bench's own flags."""

    model_config = ConfigDict(allow_inf_nan=False)

    preset: str = Field(PRESET, description="a preset: digits, mnist, ...")
    quick: bool = Field(False, description="measure fewer images and patches")
    against: Literal["dense", "none"] = Field(
        "dense",
        description="measure the authors' dense form of the VAE step too, which needs much memory",
    )
    only: str | None = Field(
        None,
        description="the sections to measure, separated by commas, such as step,drawing; if not given, all",
    )
    out: Path | None = Field(None, description="a file for the figures, as flat JSON")


class Bench(PresetCommand, Options):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures extraction, k-means, parsing, drawing and training on this machine, most against a reference.

    Each ratio compares two measurements of the same run. The bench takes some minutes; with --quick, one.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("preset", "quick", "only", "against", "out"),
        *("seed", "data.source", "data.path", "bank.size", "prior.width", "train.batch_size"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--quick --out bench.json",
        "--only bank,step --preset mnist --data.path MNIST_FOLDER",
        "--only operations --preset celeba_cluster",
    )

    seed: Seed = Field(0, description="seed of all random choices")
    data: DataConfig = DataConfig()
    grid: GridConfig = GridConfig()
    bank: BankConfig = BankConfig()
    parse: ParseConfig = ParseConfig()
    prior: PriorConfig = PriorConfig()
    vae: VAEConfig = VAEConfig()
    train: TrainConfig = TrainConfig()


def chosen(only: str | None) -> list[str]:
    """The sections in `only`, and `machine`; all sections if it is None. Raises UserError on unknown ones."""
    if only is None:
        return list(SECTIONS)
    names = ["machine", *names_in("--only", "section", only, list(SECTIONS))]
    return [name for name in SECTIONS if name in names]


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Bench, "npdraw_dist.bench", argv)
    options = own_flags(Options, flags)
    if options.out is not None and (options.out.is_dir() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out} is not a file in an existing folder")
    require_extra("bench", "cluster", "ray", "psutil")
    experiment, names = resolve(options.preset, None, flags), chosen(options.only)

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.bench import machine, method, operations, steps, training_loop
    from npdraw_dist.bench.workload import Workload
    from npdraw_dist.pipeline.progress import console

    sections: dict[str, Callable[[Workload], Mapping[str, float | str | None]]] = {
        "machine": machine.run,
        "bank": method.bank,
        "parse": method.parse,
        "drawing": method.drawing,
        "step": steps.run,
        "operations": operations.run,
        "training": training_loop.run,
    }
    work = Workload(experiment, options.quick, options.against == "dense")
    found: dict[str, Facts] = {}
    for name in names:
        console.print(f"measuring {name} ...")
        found[name] = {**sections[name](work)}
    found["machine"]["peak_rss_mb"] = machine.peak_rss_mb()
    _print_table(found)
    if options.out is not None:
        figures = {figure: value for section in found.values() for figure, value in section.items()}
        options.out.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def _print_table(found: Mapping[str, "Facts"]) -> None:
    """Prints section, figure, value and aim of each figure."""
    from rich.table import Table

    from npdraw_dist.pipeline.progress import results

    table = Table("section", "figure", "value", "aim")
    table.columns[2].justify = "right"
    for section, figures in found.items():
        for figure, value in figures.items():
            table.add_row(section, figure, _text(value), AIMS.get(figure, ""))
            section = ""
    results.print(table)


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    run_command(main)
