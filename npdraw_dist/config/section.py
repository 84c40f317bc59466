"""What all sections of the config share: the base class, the mark of a setting, and types of values."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Marks a setting, or a whole section, that says how a run is carried out and does not change its result. A
# resumed run may change it, and no fingerprint contains it. This is the only list of such settings;
# `may_change` in `config/load.py` names a few more that fingerprints contain.
NO_EFFECT_ON_RESULT = "no effect on the result"
FOUND = "found by the run, not set by a user"

Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch.Generator takes
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
# A flag comes as text, which a Literal of numbers would not take.
AsNumber = BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)


class Section(BaseModel):
    """A part of the config: immutable, no unknown key, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values."""
        values = self.model_dump(mode="json")
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if NO_EFFECT_ON_RESULT not in field.metadata:
                found[name] = value.deciding() if isinstance(value, Section) else values[name]
        return found
