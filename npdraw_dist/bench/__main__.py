"""python -m npdraw_dist.bench: measures this machine; prints a table and writes flat JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, PositiveInt
from pydantic_settings import CliImplicitFlag

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
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
from npdraw_dist.training.environment import restart_with_allocator


class Settings(BaseModel):
    seed: int = Field(0, ge=0, description="of everything random")
    data: DataConfig = DataConfig()
    grid: GridConfig = GridConfig()
    bank: BankConfig = BankConfig()
    parse: ParseConfig = ParseConfig()
    prior: PriorConfig = PriorConfig()
    vae: VAEConfig = VAEConfig()
    train: TrainConfig = TrainConfig()


class Planned(BaseModel):
    images: float = Field(1e9, ge=1, description="images of the plan")
    gpus: PositiveInt = Field(64, description="GPUs of the plan")


class Bench(Command, Settings, Planned):
    """Measures extraction, k-means, parsing, drawing and training here, each beside a yardstick.

    A ratio is of two measurements of the same run. Takes some minutes; a minute with --quick. With --plan
    it measures nothing, or --quick without --from, and prints what a run of --images would take.
    """

    preset: str = Field("digits", description="a preset: digits, mnist, ...")
    quick: CliImplicitFlag[bool] = Field(False, description="fewer images and patches")
    scale: CliImplicitFlag[bool] = Field(
        False, description="also 10,000 to 600,000 images and 5 million patches through Ray: many minutes"
    )
    against: Literal["dense", "none"] = Field(
        "dense",
        description="also the VAE step in the authors' dense formulation: it needs memory",
    )
    plan: CliImplicitFlag[bool] = Field(False, description="print a capacity plan")
    figures: str | None = Field(
        None, validation_alias=AliasChoices("from"), description="a file of --out, to plan from"
    )
    serve: CliImplicitFlag[bool] = Field(False, description="also the editor's API under load")
    out: str | None = Field(None, description="a file for the figures as flat JSON")


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Bench, "npdraw_dist.bench", argv)
    quick, scale = flags.pop("quick", False), flags.pop("scale", False)
    serve = flags.pop("serve", False)
    if quick and scale:
        raise UserError("--scale takes many minutes: give it without --quick")
    dense = flags.pop("against", "dense") == "dense"
    out = Path(flags.pop("out")) if "out" in flags else None
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out} is no file in an existing folder")
    planned, figures = flags.pop("plan", False), flags.pop("from", None)
    size = {name: flags.pop(name) for name in Planned.model_fields if name in flags}
    wanted = validate(Planned, size)
    if (size or figures) and not planned:
        raise UserError("--images, --gpus and --from are of --plan")
    experiment = resolve(flags.pop("preset", "digits"), None, flags)

    # Torch, FAISS and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.bench import capacity, report

    known = capacity.read(Path(figures)) if figures else None
    if known is None:
        found = report.measure(experiment, quick or planned, scale, dense, serve)
        report.show(found)
        known = report.flat(found)
        if out is not None:
            report.write(found, out)
    if planned:
        capacity.show(experiment, known, wanted.images, capacity.Cluster(wanted.gpus))


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
