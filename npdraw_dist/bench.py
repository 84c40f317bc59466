"""python -m npdraw_dist.bench: measures this machine; prints a table and writes flat JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from npdraw_dist.config.cli import Command, parse_flags, run_command
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import (
    BankConfig,
    DataConfig,
    GridConfig,
    ParseConfig,
    PriorConfig,
    TrainConfig,
    VAEConfig,
)
from npdraw_dist.core.errors import UserError
from npdraw_dist.dist.environment import restart_with_allocator


class Settings(BaseModel):
    seed: int = Field(0, ge=0, description="of everything random")
    data: DataConfig = DataConfig()
    grid: GridConfig = GridConfig()
    bank: BankConfig = BankConfig()
    parse: ParseConfig = ParseConfig()
    prior: PriorConfig = PriorConfig()
    vae: VAEConfig = VAEConfig()
    train: TrainConfig = TrainConfig()


class Bench(Command, Settings):
    """Measures extraction, k-means, parsing and training here, each beside a yardstick.

    A ratio is of two measurements of the same run. Takes some minutes; a minute with --quick.
    """

    preset: str = Field("digits", description="a preset: digits, mnist, ...")
    quick: CliImplicitFlag[bool] = Field(False, description="fewer images and patches")
    scale: CliImplicitFlag[bool] = Field(
        False, description="also 10,000 to 600,000 images and 5 million patches through Ray: many minutes"
    )
    serve: CliImplicitFlag[bool] = Field(False, description="also the editor's API under load")
    out: str | None = Field(None, description="a file for the figures as flat JSON")


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Bench, "npdraw_dist.bench", argv)
    quick, scale = flags.pop("quick", False), flags.pop("scale", False)
    serve = flags.pop("serve", False)
    if quick and scale:
        raise UserError("--scale takes many minutes: give it without --quick")
    out = Path(flags.pop("out")) if "out" in flags else None
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out} is no file in an existing folder")
    experiment = resolve(flags.pop("preset", "digits"), None, flags)

    # Torch, FAISS and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.stages.bench import report

    found = report.measure(experiment, quick, scale, serve)
    report.show(found)
    if out is not None:
        report.write(found, out)


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
