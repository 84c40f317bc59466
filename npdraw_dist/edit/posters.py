"""Posters from a list: several edits and completions, each file a row for each of them.

The list is YAML:

    edits:
      - {a: "id:1F642", b: "id:1F913", region: "2:4,:"}
    completions:
      - {a: "sample:3", keep: "0:4,:"}
    n: 4  # completions of each drawing
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, ValidationError, model_validator

from npdraw_dist.config.load import explain, read_file
from npdraw_dist.config.schema import Seed
from npdraw_dist.config.section import Section
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.regions import parse_region
from npdraw_dist.edit import apply
from npdraw_dist.measure.posters import save_completions, save_edits
from npdraw_dist.nn.npdraw import NPDraw


class EditEntry(Section):
    """B's parts of a region on A's canvas. Drawings and places are written as in the command `edit`."""

    a: str
    b: str
    region: str


class CompletionEntry(Section):
    """Places of A that the prior draws anew: those of `complete`, or all but those of `keep`."""

    a: str
    complete: str | None = None
    keep: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "CompletionEntry":
        if (self.complete is None) == (self.keep is None):
            raise ValueError(f"completion of {self.a}: give one of `complete` and `keep`")
        return self


class Posters(Section):
    """What is drawn. n: completions of each drawing."""

    edits: Annotated[tuple[EditEntry, ...], Field(max_length=64)] = ()
    completions: Annotated[tuple[CompletionEntry, ...], Field(max_length=64)] = ()
    n: Annotated[int, Field(gt=0, le=16)] = 4
    seed: Seed = 0
    temperature: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _not_empty(self) -> "Posters":
        if not self.edits and not self.completions:
            raise ValueError("the list has no entry under `edits` or `completions`")
        return self

    @classmethod
    def read(cls, path: str) -> "Posters":
        """Raises UserError unless the file holds a valid list."""
        try:
            return cls.model_validate(read_file(Path(path)))
        except ValidationError as error:
            raise UserError(f"{path}: {explain(error, cls)}") from None


def write_posters(
    model: NPDraw, model_folder: str, posters: Posters, folder: Path, invert: bool
) -> Sequence[Path]:
    """Writes edits.png and completions.png, each if the list has entries for it; returns their paths.

    Raises UserError, before anything is written, if a drawing or a region of the list is none.
    """
    grid, order = model.grid, model.spec.order

    def drawing(text: str) -> apply.Drawing:
        return apply.open_drawing(text, model, model_folder, invert)

    nowhere = torch.zeros(grid.places, dtype=torch.bool)
    edits = []
    for entry in posters.edits:
        a, b, region = drawing(entry.a), drawing(entry.b), parse_region(entry.region, grid)
        z = apply.Edit(region, nowhere)(a.z, b.z, order)
        edits.append(apply.edit_row(model, a, b, z, region))
    completions = []
    for number, completed in enumerate(posters.completions):
        a, places = drawing(completed.a), parse_region(completed.complete or completed.keep, grid)
        places = places if completed.keep is None else ~places
        draw = apply.Completions(places, posters.n, posters.seed + number, posters.temperature)
        completions.append(apply.completion_row(model, a, a.z, draw(model, a.z), places))
    written = []
    if edits:
        written.append(folder / "edits.png")
        save_edits(written[-1], edits, grid)
    if completions:
        written.append(folder / "completions.png")
        save_completions(written[-1], completions, grid)
    return written
