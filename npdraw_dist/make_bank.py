"""npdraw bank: a part bank of any images, which a model with `prior.table pixels` can draw with."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from npdraw_dist.config.cli import Command, of_preset, parse_flags, run_command
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_environment

STAGE = "bank"


class MakeBank(Command, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Clusters patches of images into parts, as the first stage of a training does.

    Writes OUT/bank/bank.safetensors and its picture. A model that was trained with --prior.table pixels draws
    with it: npdraw sample --bank OUT.
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

    @classmethod
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        return of_preset(words, "digits")

    preset: str = Field("digits", description="the preset whose grid and data are taken")
    out: str = Field(description="folder or URI to write to; the same command again resumes")


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(MakeBank, "npdraw_dist.make_bank", argv)
    preset, out = flags.pop("preset", "digits"), flags.pop("out", None)
    if out is None:
        raise UserError("--out is missing: the folder to write to")
    storage, slash, name = out.rstrip("/").rpartition("/")
    if not name or storage.endswith(":/"):
        raise UserError(f"--out {out!r} is no folder, or a whole bucket; give a folder such as banks/serif")
    experiment = resolve(preset, None, flags)

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.run import start

    start(experiment, storage or slash or ".", name, [STAGE])


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
