"""Opens drawings named by text such as `sample:1`, edits them, and writes pictures of the results.

A drawing is a `Drawings` object with one image. Shapes: L places, n completions, C channels, H x W image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from npdraw_dist.config.load import read_file, validated
from npdraw_dist.config.schema import Seed
from npdraw_dist.config.section import Section
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.pages import arrange, enlarge, label_rows, tile_side
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.pictures import BadPicture, Frame, read_picture
from npdraw_dist.edit.posters import CompletionRow, EditRow, framed, save_completions, save_edits
from npdraw_dist.nn import editing
from npdraw_dist.nn.animation import gif
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.editing import parse_region
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.inputs import SplitImages, image_with_id
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, read_bytes

EDIT_TILE = 224  # least side of an enlarged image, px


class CompletionEntry(Section):
    """A completion of A, for which the prior redraws the places `complete`, or all places except `keep`."""

    a: str
    complete: str | None = None
    keep: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "CompletionEntry":
        if (self.complete is None) == (self.keep is None):
            raise ValueError(f"the completion of {self.a} needs either `complete` or `keep`")
        return self


class EditEntry(Section):
    """An edit that puts B's parts of a region on A's canvas. Values are written like flags of `edit`."""

    a: str
    b: str
    region: str


class Posters(Section):
    """The edits and completions that a file for --posters lists. n: number of completions of each drawing."""

    edits: Annotated[tuple[EditEntry, ...], Field(max_length=64)] = ()
    completions: Annotated[tuple[CompletionEntry, ...], Field(max_length=64)] = ()
    n: Annotated[int, Field(gt=0, le=16)] = 4
    seed: Seed = 0
    temperature: PositiveFloat | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "Posters":
        if not self.edits and not self.completions:
            raise ValueError("the list has no entry under `edits` or `completions`")
        return self


def read_posters(path: str) -> Posters:
    """Reads a YAML file of edits and completions. Raises UserError if it is invalid."""
    return validated(Posters, read_file(Path(path)), where=f"{path}: ")


class Edits:
    """Edits drawings of `model`, loaded from `folder`. invert: whether image files are dark ink on white."""

    def __init__(self, model: NPDraw, folder: str, invert: bool = False) -> None:
        self.model, self.folder, self.invert = model, folder, invert

    def open(self, text: str) -> tuple[Drawings, Tensor]:
        """A drawing and its image (C, H, W), decoded if the drawing is a sample or from z.safetensors.

        text: a value of the flag --a. Raises UserError if it is invalid.
        """
        kind, _, number = text.partition(":")
        if kind in ("sample", "test") and not number.isdecimal():
            raise UserError(f"{text} has no number; write {kind}: and a whole number, such as {kind}:0")
        if kind == "sample":
            drawing = self.model.draw(1, seed=int(number) % 2**63)
        elif text.endswith(".safetensors"):
            z = PartSequence.load(Path(text))
            if len(z) != 1:
                raise UserError(f"{text} holds {len(z)} drawings; one is needed")
            try:
                drawing = self.model.as_drawings(z)
            except ValueError as error:
                raise UserError(f"{text} is a drawing of another model: {error}") from None
        else:
            x = self.model.as_input(self._image(text, kind, number))
            return self.model.as_drawings(x), x[0]
        return drawing, drawing.images[0]

    def _image(self, text: str, kind: str, number: str) -> Tensor:
        """The image that `text` names, uint8 (1, C, H, W). kind, number: `text` before and after a colon."""
        folder, spec = self.folder, self.model.spec
        try:
            if kind == "test":
                return SplitImages(folder, spec, "edit")[int(number)]
            if kind == "id":
                return image_with_id(folder, spec, number)
            background = "white" if (self.model.grid.background > 0) != self.invert else "black"
            frame = Frame(spec.image_shape, background, "crop")
            pixels = torch.tensor(read_picture(read_bytes(*open_filesystem(text)), frame))[None]
            return 255 - pixels if self.invert else pixels
        except IndexError as error:
            reason = f"{text}: {error} in the data of --model {folder}"
        except KeyError:
            reason = f"{text}: no training or validation image of --model {folder} has this id"
        except (OSError, BadPicture) as error:
            reason = f"{text} is no image ({error}); or give sample:SEED, test:INDEX or id:ID"
        raise UserError(reason)

    def edit_row(self, a: Drawings, b: Drawings, made: Drawings, region: Tensor) -> EditRow:
        """The row of a poster that shows A, B and the result `made`."""
        whether, where, what = (values[0] for values in vars(a.z).values())
        each = (a, b, made)
        return EditRow(
            torch.cat([one.canvas for one in each]),
            torch.cat([one.images for one in each]),
            region,
            self.model.bank_parts[what[whether]],
            where[whether],
        )

    def complete(
        self, begun: Drawings, original: Tensor, keep: Tensor, n: int, seed: int, temperature: float | None
    ) -> tuple[Drawings, CompletionRow]:
        """n completions of `begun` that keep the places `keep`, and a row that shows them and `original`."""
        completed = self.model.complete(begun.repeated(n), keep, seed=seed, temperature=temperature)
        kept = editing.remove(begun.z, ~keep.to(begun.canvas.device), self.model.spec.order)
        return completed, CompletionRow(original, self.model.render(kept)[0], keep, completed.images)

    def places_to_keep(self, complete: str | None, keep: str | None) -> Tensor:
        """(L,) bool: the places `keep`, or all places except `complete`."""
        places = parse_region(complete if keep is None else keep, self.model.grid)
        return ~places if keep is None else places

    def write_posters(self, posters: Posters, folder: Path) -> Sequence[Path]:
        """Writes edits.png and completions.png, each only if `posters` has entries for it; returns the paths.

        Raises UserError before writing if a drawing or a region is invalid.
        """
        model, grid = self.model, self.model.grid
        edits, completions, written = [], [], []
        for edit in posters.edits:
            region = parse_region(edit.region, grid)
            a, b = self.open(edit.a)[0], self.open(edit.b)[0]
            edits.append(self.edit_row(a, b, model.compose(a, b, region), region))
        for number, entry in enumerate(posters.completions):
            a, original = self.open(entry.a)
            keep, how = self.places_to_keep(entry.complete, entry.keep), (posters.n, posters.seed + number)
            completions.append(self.complete(a, original, keep, *how, posters.temperature)[1])
        if edits:
            written.append(folder / "edits.png")
            save_edits(written[-1], edits, grid)
        if completions:
            written.append(folder / "completions.png")
            save_completions(written[-1], completions, grid)
        return written


def save_edit(
    path: Path, canvases: Tensor, images: Tensor, names: Sequence[str], region: Tensor, grid: Grid
) -> None:
    """Writes canvases (N, C, h, w) above images (N, C, H, W), a column for each name.

    region: (L,) bool, the places that are framed on each canvas.
    """
    tile = tile_side(images, EDIT_TILE)
    tiles = [framed(enlarge(canvas, tile), region, grid) for canvas in canvases]
    tiles += [enlarge(image, tile) for image in images]
    page = arrange(tiles, len(names), captions=[*[""] * len(names), *names])
    label_rows(page, ["canvas", "image"]).save(path, optimize=True)


def save_interpolation(path: Path, canvases: Tensor, images: Tensor) -> None:
    """Writes an endless GIF with a frame for each canvas (N, C, h, w) and image (N, C, H, W)."""
    tile = tile_side(images, EDIT_TILE)
    pairs = zip(canvases, images, strict=True)
    frames = [arrange([enlarge(image, tile) for image in pair], 2) for pair in pairs]
    path.write_bytes(gif(frames, grey=images.shape[1] == 1))
