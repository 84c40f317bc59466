"""npdraw fit: trains on a folder of pictures for a given time."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveFloat

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.section import ImageSize


class Fit(Command):
    """Trains on a folder of pictures: `npdraw fit FOLDER`. The settings follow from the pictures.

    The same command again resumes the training. `npdraw train` has all settings.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "my_pictures",
        "my_pictures --minutes 60 --image-size 64 --name mine",
        "my_pictures --labels names --name by-words",
    )

    stray: ClassVar[str] = "the folder of pictures comes first: npdraw fit FOLDER"

    pictures: str = Field(description="the folder of pictures, given as the first word after `npdraw fit`")
    minutes: PositiveFloat = Field(
        10.0, description="time to train in this process; measured steps set the budgets"
    )
    image_size: ImageSize | None = Field(
        None,
        description="side of the images, up to 128, or HEIGHTxWIDTH such as 48x64; if not given, the "
        "pictures' own size if all share a small one, else 32 or 64, square unless nearly all pictures share "
        "another shape",
    )
    labels: str | None = Field(
        None,
        description="classes or words to draw on request: folders (the top folder is the class), names "
        "(words of the file names), none, or FILE.csv with the column file and the column label or words; if "
        "not given, folders if at least two have 3 pictures, else none",
    )
    name: str | None = Field(None, description="name of the run; if not given, that of the folder")
    storage: str = Field("runs", description="folder or URI of the run folder")
    init: str | None = Field(None, description="a trained model to start from, such as emoji")
    bank: str | None = Field(None, description="a part bank to draw with, made by `npdraw bank`")
    valid: str | None = Field(
        None, description="a folder of other pictures, for validation; if not given, a tenth of the pictures"
    )


def main(argv: Sequence[str]) -> None:
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--pictures")
    command: Fit = validate(Fit, parse_flags(Fit, "npdraw_dist.fitting", words))

    # Torch takes seconds to import, so the flags are checked first.
    from pathlib import Path

    from npdraw_dist.fitting.fit import fit

    name = command.name
    if name is None:
        name = Path(command.pictures).expanduser().resolve().name
    fit(command.pictures, name=name, **command.model_dump(exclude={"pictures", "name"}))
    print(f"{command.storage}/{name}: npdraw sample --model {command.storage}/{name} --out samples")


if __name__ == "__main__":
    run_command(main)
