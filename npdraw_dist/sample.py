"""npdraw sample: draws samples of a trained model."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command, Model, parse_flags, run_command, validate
from npdraw_dist.config.schema import Seed
from npdraw_dist.system.errors import UserError


class Sample(Command):
    """Draws samples; writes samples.png (the first 256), generation.gif (growing canvas) and samples.npz."""

    examples: ClassVar[tuple[str, ...]] = (
        "--out samples",
        "--model runs/digits --n 100 --temperature 0.8 --out samples",
        "--model runs/digits-by-class --condition 7 --out sevens",
    )

    model: Model = None
    n: PositiveInt = Field(64, description="number of samples")
    out: str = Field(description="the folder to write to")
    seed: Seed = Field(0, description="seed of the samples")
    temperature: PositiveFloat | None = Field(
        None, description="temperature of the prior; below 1 is less varied; if not given, the model's own"
    )
    condition: str | None = Field(
        None, description="what to draw, for a conditioned model: a class, or words"
    )
    guidance: NonNegativeFloat | None = Field(
        None,
        description="strength of the condition: 0 ignores it, 1 is as in training, more strengthens it; "
        "if not given, the model's own",
    )
    bank: str | None = Field(
        None,
        description="another part bank to draw with, made by `npdraw bank`; for a model with prior.table "
        "pixels",
    )
    use_gpu: bool | None = Field(
        None,
        description="draw on a GPU, with other random numbers; if not given, on a GPU if there is one",
    )


def main(argv: Sequence[str]) -> None:
    command: Sample = validate(Sample, parse_flags(Sample, "npdraw_dist.sample", argv))
    if command.condition is None and command.guidance is not None:
        raise UserError("--guidance needs a --condition")

    # Torch takes seconds to import, so the flags are checked first.
    import torch

    from npdraw_dist.pipeline.sample import local_folder, write_samples
    from npdraw_dist.pipeline.trained_models import chosen_model, load_model, load_npdraw, read_bank
    from npdraw_dist.system.process import local_device

    device = local_device(command.use_gpu, "use-gpu")
    folder = chosen_model(command.model)
    if command.bank is None:
        model = load_model(folder).to(device)
    else:
        model = load_npdraw(folder).with_bank(read_bank(command.bank)).to(device)
    if command.condition is not None:
        model = model.given(command.condition, model.guidance_of(command.guidance))
    with local_folder(command.out) as out:
        noise = torch.Generator(device).manual_seed(command.seed)
        write_samples(model.sample_trace(command.n, generator=noise, temperature=command.temperature), out)
    print(f"{command.n} samples: {out}/samples.png, {out}/generation.gif, {out}/samples.npz")


if __name__ == "__main__":
    run_command(main)
