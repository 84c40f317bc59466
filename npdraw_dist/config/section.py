"""What all sections of the config share, and the marks that a setting can have."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

# Marks a setting, or a whole section, that says how a run is carried out and does not change its result. A
# resumed run may change it, and no fingerprint contains it. This is the only list of such settings;
# `config/resume.py` names a few more that fingerprints contain.
NO_EFFECT_ON_RESULT = "no effect on the result"


@dataclass(frozen=True)
class AddedLater:
    """Marks a setting that version `since` added. Before it, all runs did what the value `before` says.

    A run whose config lacks the setting has that value, and fingerprints leave the setting out where it has
    it, so that runs of older versions keep theirs.
    """

    since: str
    before: Any


class Section(BaseModel):
    """A part of the config: immutable, no unknown key, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values."""
        values = self.model_dump(mode="json")
        found: dict[str, Any] = {}
        later = self.added_later()
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            old = name in later and value == later[name].before
            if NO_EFFECT_ON_RESULT not in field.metadata and not old:
                found[name] = value.deciding() if isinstance(value, Section) else values[name]
        return found

    @classmethod
    def added_later(cls) -> dict[str, AddedLater]:
        """The settings of this section that have the mark, by name."""
        marks = {name: field.metadata for name, field in cls.model_fields.items()}
        return {name: mark for name, found in marks.items() for mark in found if isinstance(mark, AddedLater)}
