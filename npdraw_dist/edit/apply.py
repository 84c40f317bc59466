"""Edits given as text: opens the drawings, parses places, applies the edit and writes pictures of it.

A drawing is a `PartSequence` of one image. Shapes: L places, T steps, n completions, D latents, C channels,
H x W image.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from npdraw_dist.core import editing
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.data.uploads import NotAPicture, read_picture
from npdraw_dist.measure.pictures import png, save_edit, save_interpolation
from npdraw_dist.measure.posters import CompletionRow, EditRow, save_completions
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.model_run import HeldOutImages, image_with_id


@dataclass(frozen=True)
class Drawing:
    """z: (1, T). u: (1, ...), what its parts cannot say; None: not known. image: (C, H, W), that z is of."""

    z: PartSequence
    u: Tensor | None
    image: Tensor | None = None

    @classmethod
    def of_image(cls, x: Tensor, model: NPDraw) -> "Drawing":
        """x: (1, C, H, W), as the model takes it. z and u are the likeliest ones."""
        z = model.encode(x)
        return cls(z, model.likeliest_appearance(x, model.render(z)), x[0])

    @classmethod
    def sampled(cls, seed: int, model: NPDraw) -> "Drawing":
        """z and u of `model.sample` with this seed."""
        generator = torch.Generator(model.device).manual_seed(seed)
        z = model.sample_prior(1, generator)
        return cls(z, model.sample_appearance(model.render(z), generator))


@dataclass(frozen=True)
class Completions:
    """What is asked of the prior. places: (L,) bool, to be drawn anew; count: how many times."""

    places: Tensor
    count: int = 1
    seed: int = 0
    temperature: float = 1.0

    def __call__(self, model: NPDraw, z: PartSequence) -> PartSequence:
        """z (1, T) -> (count, T)."""
        generator = torch.Generator(model.device).manual_seed(self.seed)
        copies = z[torch.zeros(self.count, dtype=torch.int64, device=z.where.device)]
        return model.complete(copies, ~self.places, generator, self.temperature)


@dataclass(frozen=True)
class Edit:
    """What is done to A, in this order: it takes B's parts in `region`, loses `remove`, then moves parts.

    Then the prior may draw some places anew.
    """

    region: Tensor  # (L,) bool
    remove: Tensor  # (L,) bool
    move: tuple[int, int] | None = None  # places: from, to
    completions: Completions | None = None

    def __call__(self, z_a: PartSequence, z_b: PartSequence, order: str) -> PartSequence:
        """The edited drawing, before any completion."""
        z = editing.compose(z_a, z_b, self.region, order)
        z = editing.remove(z, self.remove, order)
        return z if self.move is None else editing.move(z, *self.move, order)


def open_drawing(text: str, model: NPDraw, model_folder: str, invert: bool = False) -> Drawing:
    """The drawing of `sample:SEED`, `test:INDEX`, `id:ID`, a saved .safetensors file or an image file.

    Raises UserError if `text` is none of these.
    """
    kind, _, number = text.partition(":")
    if kind in ("sample", "test") and not number.isdecimal():
        raise UserError(f"{text}: write {kind}: and a whole number, such as {kind}:0")
    if kind == "sample":
        return Drawing.sampled(int(number) % 2**63, model)
    if text.endswith(".safetensors"):
        return Drawing(_open_saved(text, model), None)
    try:
        if kind == "test":
            images = HeldOutImages(model_folder, model.spec, "edit")[int(number)]
        elif kind == "id":
            images = image_with_id(model_folder, model.spec, number)
        else:
            content, shape = read_bytes(*open_filesystem(text)), model.spec.image_shape
            images = read_picture(content, shape, invert, model.grid.background)
    except IndexError as error:
        raise UserError(f"{text}: {error} in the data of --model {model_folder}") from None
    except KeyError:
        raise UserError(
            f"{text}: no training or validation image of --model {model_folder} has this id"
        ) from None
    except (OSError, NotAPicture) as error:
        raise UserError(f"{text} is no image ({error}); or give sample:SEED, test:INDEX or id:ID") from None
    return Drawing.of_image(model.as_input(images), model)


def _open_saved(text: str, model: NPDraw) -> PartSequence:
    z, spec = PartSequence.load(Path(text)).to(model.device), model.spec
    try:
        editing.check_ranges(z, spec.steps, spec.grid.places, spec.parts, spec.where_given)
    except ValueError as error:
        raise UserError(f"{text} is a drawing of another model: {error}") from None
    if len(z) != 1:
        raise UserError(f"{text} holds {len(z)} drawings; one is needed")
    return z


def edit_row(model: NPDraw, a: Drawing, b: Drawing, edited: PartSequence, region: Tensor) -> EditRow:
    """A, B and the drawing `edited` (1, T) of a poster: A and B with their u, the last with both."""
    canvases = model.render(PartSequence.cat([a.z, b.z, edited]))
    joined = model.joined_appearance(canvases[2:], [(a.u, canvases[:1]), (b.u, canvases[1:2])])
    us = [a.u, b.u, joined]
    images = [model.decode(canvas[None], u) for canvas, u in zip(canvases, us, strict=True)]
    drawn = a.z.whether[0]
    parts = model.bank_parts[a.z.what[0][drawn]]
    return EditRow(canvases, torch.cat(images), region, parts, a.z.where[0][drawn])


def completion_row(
    model: NPDraw, a: Drawing, z: PartSequence, completed: PartSequence, places: Tensor
) -> CompletionRow:
    """Completions (n, T) of z (1, T) at `places` (L,) bool, decoded with the u of A, for a poster."""
    order, whole = model.spec.order, model.render(z)
    original = model.decode(whole, a.u)[0] if a.image is None else a.image
    kept = model.render(editing.remove(z, places, order))[0]
    canvases = model.render(completed)
    u = model.joined_appearance(canvases, [(a.u, whole)])
    return CompletionRow(original, kept, ~places, model.decode(canvases, u))


def write_edit(
    model: NPDraw, a: Drawing, b: Drawing | None, edit: Edit, folder: Path, interpolate: bool
) -> int:
    """Writes edit.png (A, B if there is one, and the result), edited.png and z.safetensors.

    And completion.png and interpolation.gif, if they are asked for. The result is the first completion.
    Returns how many of A's parts outside the region were dropped because all T steps were taken.
    """
    order, grid, other = model.spec.order, model.grid, b or a
    dropped = editing.count_drawn(a.z, ~edit.region) + editing.count_drawn(other.z, edit.region)
    dropped -= editing.compose(a.z, other.z, edit.region, order).whether.sum()
    z, region = edit(a.z, other.z, order), edit.region
    if edit.completions is not None:
        before, places = z, edit.completions.places
        z = edit.completions(model, before)
        save_completions(folder / "completion.png", [completion_row(model, a, before, z, places)], grid)
        z, region = z[:1], region if region.any() else places
    row = edit_row(model, a, other, z, edit.region)
    shown = [0, 1, 2] if b else [0, 2]
    names = [["A", "B", "edited"][index] for index in shown]
    save_edit(folder / "edit.png", row.canvases[shown], row.images[shown], names, region, grid)
    (folder / "edited.png").write_bytes(png(row.images[2]))
    z.save(folder / "z.safetensors", {"order": order})
    if interpolate:
        between = model.render(editing.interpolate(a.z, z, grid.places, order))
        donors = [(a.u, row.canvases[:1]), (other.u, row.canvases[1:2])]
        u = model.joined_appearance(between, donors)
        save_interpolation(folder / "interpolation.gif", between, model.decode(between, u))
    return int(dropped)
