"""What all sections of the config share, and the mark that a setting can have."""

from typing import Any

from pydantic import BaseModel, ConfigDict

# Marks a setting, or a whole section, that says how a run is carried out and does not change its result. A
# resumed run may change it, and no fingerprint contains it. This is the only list of such settings;
# `config/resume.py` names a few more that fingerprints contain.
NO_EFFECT_ON_RESULT = "no effect on the result"


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
