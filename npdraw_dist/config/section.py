"""The base classes of the config's sections, and the types of setting values."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # the seeds that torch.Generator takes
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
# Turns a flag's value, which is text, into a number, since a Literal of numbers rejects text.
AsNumber = BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)
SIZE = re.compile(r"([1-9]\d*)(?:x([1-9]\d*))?")


def sides(size: Any) -> tuple[int, int]:
    """(H, W) in pixels of a size as settings state it: 64, or 48x64. Raises ValueError on anything else."""
    found = SIZE.fullmatch(str(size))
    if found is None:
        raise ValueError(f"{size!r} is no size of images; give a side such as 64, or HEIGHTxWIDTH as 48x64")
    return int(found[1]), int(found[2] or found[1])


def size_of(height: int, width: int) -> int | str:
    """A size as settings state it: the side of a square, or else such as 48x64."""
    return height if height == width else f"{height}x{width}"


ImageSize = Annotated[int | str, BeforeValidator(lambda value: size_of(*sides(value)))]


class Section(BaseModel):
    """A part of the config. It is immutable and accepts only known keys and finite numbers.

    The string below a setting is its description, which the help shows.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def made(self) -> dict[str, Any]:
        """The settings that decide what is made (all but those of a `RunHalf`), as plain JSON values."""
        bases = (
            base for base in type(self).__mro__ if issubclass(base, RunHalf) and RunHalf in base.__bases__
        )
        run_half = {name for base in bases for name in base.model_fields}
        values = self.model_dump(mode="json", exclude=run_half)
        sections = {name: getattr(self, name) for name in values}
        made = {name: one.made() for name, one in sections.items() if isinstance(one, Section)}
        return {name: value for name, value in (values | made).items() if value != {}}


class RunHalf(Section):
    """Base of the classes of settings that decide how a run works, not what it makes.

    A section with such settings inherits from a subclass of RunHalf that contains them. A resumed run may
    change these settings, and no fingerprint of a stage contains them.
    """
