"""npdraw bench: measures this machine; prints a table and writes flat JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from npdraw_dist.config.cli import PRESET, PresetCommand, own_flags, parse_flags, run_command
from npdraw_dist.config.load import resolve
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
from npdraw_dist.core.errors import UserError


class Options(BaseModel):
    """The bench's own flags."""

    model_config = ConfigDict(allow_inf_nan=False)

    preset: str = Field(PRESET, description="a preset: digits, mnist, ...")
    quick: bool = Field(False, description="measure fewer images and patches")
    against: Literal["dense", "none"] = Field(
        "dense", description="also the VAE step in the authors' dense formulation: it needs memory"
    )
    only: str | None = Field(
        None,
        description="sections to measure, separated by commas, such as step,drawing; if not given, all",
    )
    out: Path | None = Field(None, description="a file for the figures, as flat JSON")


class Bench(PresetCommand, Options):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures extraction, k-means, parsing, drawing and training here, most of them beside a reference.

    A ratio compares two measurements of the same run. It takes some minutes, with --quick a minute.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("preset", "quick", "only", "against", "out"),
        *("seed", "data.source", "data.path", "bank.size", "prior.width", "train.batch_size"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--quick --out bench.json",
        "--only bank,step --preset mnist --data.path MNIST_FOLDER",
    )

    seed: Seed = Field(0, description="of everything random")
    data: DataConfig = DataConfig()
    grid: GridConfig = GridConfig()
    bank: BankConfig = BankConfig()
    parse: ParseConfig = ParseConfig()
    prior: PriorConfig = PriorConfig()
    vae: VAEConfig = VAEConfig()
    train: TrainConfig = TrainConfig()


def parse(argv: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """The bench's own flags, and those of the config. Raises UserError if --out cannot be a file."""
    flags: dict[str, Any] = parse_flags(Bench, "npdraw_dist.bench", argv)
    options = own_flags(Options, flags)
    if options.out is not None and (options.out.is_dir() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out} is not a file in an existing folder")
    return options, flags


def main(argv: Sequence[str]) -> None:
    options, flags = parse(argv)
    experiment = resolve(options.preset, None, flags)

    # Torch and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.bench import sections
    from npdraw_dist.bench.workload import open_workload

    work = open_workload(experiment, options.quick, options.against == "dense")
    figures = sections.measure(work, sections.chosen(options.only))
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_command(main)
