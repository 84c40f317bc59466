"""npdraw edit: puts parts of one image on the canvas of another, or lets the prior redraw places."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat

from npdraw_dist.config.cli import Command, Model, parse_flags, run_command, validate
from npdraw_dist.config.schema import Seed
from npdraw_dist.system.errors import UserError

if TYPE_CHECKING:
    from npdraw_dist.edit.pictures import Edits

SOURCES = (
    "an image file, sample:SEED, test:INDEX (a test image of the model's run), id:ID (one of its training "
    "and validation images) or a saved z.safetensors"
)
PLACES = "R0:R1,C0:C1, or several of these joined by ;"


class Edit(Command):
    """Puts a region of B's canvas on A's, or lets the prior redraw places, and decodes the result. Writes
    edit.png (A, B if there is one, and the result side by side), edited.png (the result) and z.safetensors,
    which can be edited again.

    Rows and columns count places of the grid; the end of a range is not included. --remove and --move
    are applied after the region, and --complete or --keep last. These two also write completion.png: the
    original, its kept parts, and N completions, of which the first is the result.

    Details that parts cannot express, such as the slant of strokes, come from A if A is an image or a sample.
    A saved drawing does not hold them, so its canvas alone is decoded.

    --posters LIST.yaml makes many edits and completions. It writes edits.png and completions.png, with a row
    for each.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "--a sample:1 --b sample:2 --region 0:3,0:6 --out edited",
        "--a photo.png --remove 2:4,2:4 --out edited",
        "--a test:5 --keep 0:3,: --n 4 --out completed",
    )

    model: Model = None
    a: str | None = Field(None, description=f"the drawing to edit: {SOURCES}")
    b: str | None = Field(None, description="the drawing to take parts from, given like --a; needs --region")
    region: str | None = Field(None, description=f"the places that take B's parts: {PLACES}")
    remove: str | None = Field(None, description=f"the places to empty: {PLACES}")
    move: str | None = Field(None, description="R,C:R,C moves the parts of the first place to the second")
    complete: str | None = Field(
        None, description=f"the places that the prior redraws given all others: {PLACES}"
    )
    keep: str | None = Field(None, description=f"the places to keep; the prior redraws all others: {PLACES}")
    n: int = Field(1, gt=0, le=64, description="number of completions")
    seed: Seed = Field(0, description="seed of the completions")
    temperature: PositiveFloat | None = Field(
        None, description="temperature of the prior; lower is less varied; if not given, the model's own"
    )
    interpolate: bool = Field(
        False, description="also write interpolation.gif, from A to the result place by place"
    )
    posters: str | None = Field(
        None, description="a YAML file with a list `edits` of {a, b, region} and `completions` of {a, keep}"
    )
    invert: bool = Field(False, description="the image files show dark ink on white")
    out: str = Field(description="the folder to write to")


def main(argv: Sequence[str]) -> None:
    command: Edit = validate(Edit, parse_flags(Edit, "npdraw_dist.edit", argv))
    _check_pairs(command)

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.edit import pictures
    from npdraw_dist.pipeline.sample import local_folder
    from npdraw_dist.pipeline.trained_models import chosen_model, load_npdraw

    posters = None if command.posters is None else pictures.read_posters(command.posters)
    folder = chosen_model(command.model)
    edits = pictures.Edits(load_npdraw(folder), folder, command.invert)
    if posters is None:
        _edit(command, edits)
    else:
        with local_folder(command.out) as out:
            print(", ".join(map(str, edits.write_posters(posters, out))))


def _edit(command: Edit, edits: "Edits") -> None:
    """Makes an edit and writes its files. Raises UserError before writing if A, B or a region is invalid."""
    import torch

    from npdraw_dist.core.images import png
    from npdraw_dist.edit.pictures import save_edit, save_interpolation
    from npdraw_dist.edit.posters import save_completions
    from npdraw_dist.nn import editing
    from npdraw_dist.nn.editing import parse_move, parse_region
    from npdraw_dist.pipeline.sample import local_folder

    model, grid = edits.model, edits.model.grid
    region, remove = (parse_region(text, grid) for text in (command.region, command.remove))
    move = dict([parse_move(command.move, grid)] if command.move else [])
    completes = command.complete is not None or command.keep is not None
    keep = edits.places_to_keep(command.complete, command.keep) if completes else None
    assert command.a is not None
    first, original = edits.open(command.a)
    shown, made, dropped = {"A": first}, first, 0
    if command.b is not None:
        shown["B"] = b = edits.open(command.b)[0]
        made = model.compose(first, b, region)
        dropped = editing.dropped(made.z, (first.z, ~region), (b.z, region))
    made = model.edit(made, remove=remove, move=move)
    with local_folder(command.out) as out:
        if keep is not None:
            how = (command.n, command.seed, command.temperature)
            completed, row = edits.complete(made, original, keep, *how)
            save_completions(out / "completion.png", [row], grid)
            made, region = completed[0], region if region.any() else ~keep
        shown["edited"] = made
        canvases, images = zip(*((one.canvas, one.images) for one in shown.values()), strict=True)
        named = torch.cat(canvases), torch.cat(images), list(shown)
        save_edit(out / "edit.png", *named, region, grid)
        (out / "edited.png").write_bytes(png(made.images[0]))
        made.z.save(out / "z.safetensors")
        if command.interpolate:
            between = first.towards(made)
            save_interpolation(out / "interpolation.gif", between.canvas, between.images)
    if dropped:
        print(f"{dropped} parts of A outside the region were dropped: a drawing has {model.spec.steps} steps")
    more = f", {out}/completion.png" if completes else ""
    print(f"{out}/edit.png, {out}/edited.png, {out}/z.safetensors{more}")


def _check_pairs(command: Edit) -> None:
    """Raises UserError if flags are missing or contradict each other."""
    if command.posters is not None:
        others = command.model_fields_set - {"posters", "model", "out", "invert"}
        if others:
            raise UserError(f"--posters names the edits in its file; leave out --{min(others)}")
        return
    if command.a is None:
        raise UserError("--a is missing; give the drawing to edit (see --help)")
    if (command.b is None) != (command.region is None):
        raise UserError("give --b, the drawing to take parts from, together with --region, the places")
    if command.complete is not None and command.keep is not None:
        raise UserError("give --complete, the places to redraw, or --keep, the places to keep, not both")
    completed = command.complete is not None or command.keep is not None
    if not completed and (others := command.model_fields_set & {"n", "seed", "temperature"}):
        raise UserError(f"--{min(others)} is for completions; give --complete or --keep with it")
    if not completed and command.region is None and command.remove is None and command.move is None:
        raise UserError(
            "there is nothing to do; give --b B --region R0:R1,C0:C1, --remove, --move, --complete or --keep"
        )


if __name__ == "__main__":
    run_command(main)
