"""python -m npdraw_dist.sample: pictures drawn by a trained model."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_allocator


class Sample(Command):
    """Draws samples: samples.png, generation.gif (the canvas growing) and samples.npz."""

    model: str | None = Field(
        None, description="a model folder, such as runs/digits/model; that of the last run if not given"
    )
    n: PositiveInt = Field(64, description="number of samples")
    out: str = Field(description="the folder to write to")
    seed: int = Field(0, ge=0, description="of the samples")
    temperature: PositiveFloat = Field(1.0, description="of the prior")


def main(argv: Sequence[str]) -> None:
    command = validate(Sample, parse_flags(Sample, "npdraw_dist.sample", argv))

    from npdraw_dist.pipeline.drawing import latest_model, load_model, write_samples

    if "://" in command.out:
        raise UserError(f"--out {command.out} is a URI; pictures go to a local folder")
    model = load_model(command.model or latest_model())
    out = Path(command.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_samples(model, out, command.n, command.seed, command.temperature)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from None
    print(f"{command.n} samples: {out}/samples.png, {out}/generation.gif, {out}/samples.npz")


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
