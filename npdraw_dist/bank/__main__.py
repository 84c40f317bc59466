"""npdraw bank: clusters any images into a part bank for models with `prior.table pixels`."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from npdraw_dist.config.cli import PRESET, PresetCommand, own_flags, parse_flags, run_command
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.system.errors import UserError

STAGE = "bank"


class Options(BaseModel):
    """The flags of `npdraw bank` that are not settings of the experiment."""

    preset: str = Field(PRESET, description="the preset whose grid and data are taken")
    out: str = Field(description="folder or URI to write to; the same command again resumes")


class MakeBank(PresetCommand, Options, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Clusters patches of images into parts, as the stage `bank` of a training does.

    Writes OUT/bank/bank.safetensors and its picture. A model that was trained with --prior.table pixels can
    draw with this bank: npdraw sample --bank OUT.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("preset", "out", "seed", "data.source", "data.path", "data.image_size", "data.channels"),
        *("data.fraction", "grid.patch", "grid.stride", "grid.background", "bank.size", "bank.max_patches"),
        *("bank.shards", "scale.num_workers", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--data.source imagefolder --data.path PHOTOS --data.image_size 28 --data.channels 1 --out other",
        "--preset glyphs --data.path FONTS --bank.size 200 --out serif",
    )


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(MakeBank, "npdraw_dist.bank", argv)
    own = own_flags(Options, flags)
    storage, slash, name = own.out.rstrip("/").rpartition("/")
    if not name.strip(".") or storage.endswith(":/"):
        raise UserError(f"--out {own.out!r} is a whole bucket or has no name; give a new folder")
    experiment = resolve(own.preset, None, flags)
    if STAGE not in experiment.stage_names:
        raise UserError(f"model.kind {experiment.model.kind} has no part bank; leave it out")

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.run import start

    try:
        start(experiment, storage or slash or ".", name, ["data", STAGE])
    except UserError as error:  # the message names flags of `npdraw train`, which this command calls --out
        error.args = (str(error).replace("--name", "--out").replace("--storage", "--out"),)
        raise


if __name__ == "__main__":
    run_command(main)
