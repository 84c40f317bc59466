"""python -m npdraw_dist.bench: measures this machine; prints a table and writes flat JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveInt

from npdraw_dist.config.cli import Command, of_preset, parse_flags, run_command, validate
from npdraw_dist.config.load import resolve
from npdraw_dist.config.places import GridConfig
from npdraw_dist.config.schema import (
    BankConfig,
    DataConfig,
    ParseConfig,
    PriorConfig,
    Seed,
    TrainConfig,
    VAEConfig,
)
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_environment


class Options(BaseModel):
    """The bench's own flags."""

    model_config = ConfigDict(allow_inf_nan=False)

    preset: str = Field("digits", description="a preset: digits, mnist, ...")
    quick: bool = Field(False, description="measure fewer images and patches")
    scaling: bool = Field(
        False,
        validation_alias=AliasChoices("scaling", "scale"),
        description="also 10,000 to 600,000 images and 5 million patches through Ray: many minutes",
    )
    sizes: tuple[PositiveInt, ...] | None = Field(
        None,
        description="images of --scaling, growing: 30000,300000; if not given, 10000,60000,600000",
    )
    against: Literal["dense", "none"] = Field(
        "dense", description="also the VAE step in the authors' dense formulation: it needs memory"
    )
    serve: bool = Field(False, description="also the studio's API under load")
    only: str | None = Field(
        None, description="sections to measure, separated by commas, such as step,kernels; if not given, all"
    )
    out: Path | None = Field(None, description="a file for the figures, as flat JSON")
    plan: bool = Field(False, description="print a capacity plan")
    images: float | None = Field(None, ge=1, description="images of the plan; default: 1e9")
    gpus: int | None = Field(
        None, ge=0, description="GPUs of the plan; default: 64; 0: the machine of the figures as it is"
    )
    figures: Path | None = Field(
        None, validation_alias=AliasChoices("from"), description="a file of --out to plan from"
    )


class Bench(Command, Options):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures extraction, k-means, parsing, drawing and training here, each compared with a reference.

    A ratio is of two measurements of the same run. It takes some minutes, with --quick a minute. --plan
    prints what a run on --images and --gpus would take: from the figures of --from without measuring
    anything, else from figures measured as with --quick.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("preset", "quick", "only", "scaling", "sizes", "against", "serve", "out", "plan", "images", "gpus"),
        *("from", "seed", "data.source", "data.path", "bank.size", "prior.width", "train.batch_size"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--quick --out bench.json",
        "--only bank,step --preset mnist --data.path MNIST_FOLDER",
        "--plan --from bench.json --images 1e9 --gpus 64",
    )

    @classmethod
    def without_flags(cls, given: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
        return of_preset(given, "digits")

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
    names = [*Options.model_fields, "from"]
    options: Options = validate(Options, {name: flags.pop(name) for name in names if name in flags})
    if options.quick and options.scaling:
        raise UserError("--scaling takes many minutes: give it without --quick")
    if options.sizes is not None and not options.scaling:
        raise UserError("--sizes are those of --scaling")
    if options.sizes is not None and (
        len(options.sizes) < 2 or list(options.sizes) != sorted(set(options.sizes))
    ):
        raise UserError(f"--sizes takes two or more growing numbers, not {' '.join(map(str, options.sizes))}")
    if options.out is not None and (options.out.is_dir() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out} is not a file in an existing folder")
    if options.only is not None and (options.plan or options.scaling or options.serve):
        raise UserError("--only leaves out what --plan needs, and names scaling and serve itself")
    if not options.plan and (options.images or options.gpus is not None or options.figures):
        raise UserError("--images, --gpus and --from need --plan")
    return options, flags


def main(argv: Sequence[str]) -> None:
    options, flags = parse(argv)
    experiment = resolve(options.preset, None, flags)

    # Torch and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.bench import capacity, report, sections

    if options.figures is not None:
        figures = capacity.read(options.figures)
    else:
        quick, dense = options.quick or options.plan, options.against == "dense"
        only = () if options.only is None else sections.chosen(options.only)
        extent = sections.Extent(quick, dense, options.scaling, options.serve, only, options.sizes)
        found = sections.measure(experiment, extent)
        report.show(found)
        figures = sections.flat(found)
        if options.out is not None:
            options.out.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    if options.plan:
        here = options.gpus == 0
        cluster = capacity.Cluster.of_machine(figures) if here else capacity.Cluster(options.gpus or 64)
        capacity.show(experiment, figures, options.images or 1e9, cluster)


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
