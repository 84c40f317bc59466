"""npdraw bench: measures this machine; prints a table and writes flat JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

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
        description="sections to measure, separated by commas, such as step,drawing; if not given, all but "
        "serve, the studio's API under load",
    )
    out: Path | None = Field(None, description="a file for the figures, as flat JSON")
    plan: bool = Field(False, description="print a capacity plan")
    images: float | None = Field(None, ge=1, description="images of the plan; default: 1e6")
    gpus: int | None = Field(
        None, ge=0, description="GPUs of the plan; default: 8; 0: the machine of the figures as it is"
    )
    figures: Path | None = Field(
        None, validation_alias=AliasChoices("from"), description="a file of --out to plan from"
    )


class Bench(PresetCommand, Options):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures extraction, k-means, parsing, drawing and training here, most of them beside a reference.

    A ratio is of two measurements of the same run. It takes some minutes, with --quick a minute. --plan
    prints what a run on --images and --gpus would take: from the figures of --from without measuring
    anything, else from figures measured as with --quick.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("preset", "quick", "only", "against", "out", "plan", "images", "gpus", "from"),
        *("seed", "data.source", "data.path", "bank.size", "prior.width", "train.batch_size"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--quick --out bench.json",
        "--only bank,step --preset mnist --data.path MNIST_FOLDER",
        "--plan --from bench.json --images 1e8 --gpus 64",
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
    """The bench's own flags, and those of the config. Raises UserError on flags that exclude each other."""
    flags: dict[str, Any] = parse_flags(Bench, "npdraw_dist.bench", argv)
    options = own_flags(Options, flags)
    if options.out is not None and (options.out.is_dir() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out} is not a file in an existing folder")
    if options.only is not None and options.plan:
        raise UserError("--only leaves out what --plan needs")
    if not options.plan and (options.images or options.gpus is not None or options.figures):
        raise UserError("--images, --gpus and --from need --plan")
    if options.figures is not None and (options.quick or options.out is not None):
        raise UserError("--from has the figures: leave out --quick and --out")
    return options, flags


def main(argv: Sequence[str]) -> None:
    options, flags = parse(argv)
    experiment = resolve(options.preset, None, flags)

    # Torch and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.bench import plan, sections
    from npdraw_dist.bench.workload import open_workload

    if options.figures is not None:
        figures = plan.read(options.figures)
    else:
        alone = options.plan and options.out is None  # nothing but the plan is asked for
        names = list(sections.PLANNED) if alone else sections.chosen(options.only)
        dense = options.against == "dense" and not alone
        figures = sections.measure(open_workload(experiment, options.quick or options.plan, dense), names)
        if options.out is not None:
            options.out.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    if options.plan:
        plan.show(experiment, figures, options.images or 1e6, 8 if options.gpus is None else options.gpus)


if __name__ == "__main__":
    run_command(main)
