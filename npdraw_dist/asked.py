"""npdraw asked: how often a model draws what it is asked for, as classifiers of real images read it."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command, Model, parse_flags, run_command, validate
from npdraw_dist.config.schema import Seed
from npdraw_dist.training.environment import restart_with_environment


class Asked(Command):
    """Asks a model for classes or words, and has classifiers of real images read its drawings.

    The model is in its run, whose training and validation images the classifiers take. Questions are
    conditions of these images: *seen* ones come in training, *held out* ones in validation alone, with words
    that training has. Writes OUT/asked.json and a sheet, OUT/asked.png.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "--model runs/digits-by-class --n 100 --guidance 1.5 --out asked",
        "--model runs/emoji --attributes docs/emoji-attributes.yaml --out asked",
    )

    model: Model = None
    attributes: str | None = Field(
        None,
        description="YAML file, attribute -> list of its alternatives, each one or more words; for a model "
        "that is told words",
    )
    questions: PositiveInt = Field(
        200, description="conditions that are asked, seen and held out: so many of each, or all there are"
    )
    n: PositiveInt = Field(4, description="drawings of each question")
    guidance: NonNegativeFloat = Field(1.5, description="as for `npdraw sample`")
    temperature: PositiveFloat | None = Field(
        None, description="temperature of the prior; if not given, the model's own"
    )
    seed: Seed = Field(0, description="seed of questions, drawings and classifiers")
    out: str = Field(description="the folder to write to")


def main(argv: Sequence[str]) -> None:
    settings = validate(Asked, parse_flags(Asked, "npdraw_dist.asked", argv))

    from npdraw_dist.evaluate.asked import ask  # torch takes seconds to import

    for name, facts in ask(settings).items():
        for kind in ("seen", "held_out"):
            if facts[f"{kind}_drawings"]:
                print(
                    f"{name}, {kind.replace('_', ' ')}: {facts[f'{kind}_right']:.1%} of "
                    f"{facts[f'{kind}_drawings']} drawings are read as asked"
                )
    print(f"{settings.out}/asked.json, {settings.out}/asked.png")


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
