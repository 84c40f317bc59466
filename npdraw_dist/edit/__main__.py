"""npdraw edit: puts parts of one image on the canvas of another, or draws places anew."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveFloat

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.schema import Seed
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_environment

SOURCES = (
    "an image file, sample:SEED, test:INDEX (a test image of the model's run), id:ID (one of its training "
    "and validation images) or a saved z.safetensors"
)
PLACES = "R0:R1,C0:C1, or several of these joined by ;"


class Edit(Command):
    """Puts a region of B's canvas on A's, or lets the prior draw places anew, and decodes the result. Writes
    edit.png (A, B if there is one, and the result side by side), edited.png (the result) and z.safetensors,
    which can be edited again.

    Rows and columns count places of the grid; the end of a range is not included. --remove and --move
    are applied after the region, and --complete or --keep last. These also write completion.png: the
    original, what is kept of it, and N completions; the result is the first of them.

    What parts cannot say, such as the slant of strokes, stays that of A where A is an image or a sample. A
    saved drawing does not hold it: the canvas alone is decoded.

    --posters LIST.yaml makes many edits and completions at once, and shows them on edits.png and
    completions.png, a row for each.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "--a sample:1 --b sample:2 --region 0:3,0:6 --out edited",
        "--a photo.png --remove 2:4,2:4 --out edited",
        "--a test:5 --keep 0:3,: --n 4 --out completed",
    )

    model: str | None = Field(
        None, description="a run, a model folder, a URI or an id of the hub; if not given, the last run"
    )
    a: str | None = Field(None, description=f"the drawing to edit: {SOURCES}")
    b: str | None = Field(None, description="the drawing to take parts from, given like --a; needs --region")
    region: str | None = Field(None, description=f"the places that take B's parts: {PLACES}")
    remove: str | None = Field(None, description=f"the places to empty: {PLACES}")
    move: str | None = Field(None, description="R,C:R,C, moves the parts of one place to another")
    complete: str | None = Field(
        None, description=f"the places that the prior draws anew, given all others: {PLACES}"
    )
    keep: str | None = Field(
        None, description=f"the places that are kept; the prior draws all others: {PLACES}"
    )
    n: int = Field(1, gt=0, le=64, description="number of completions")
    seed: Seed = Field(0, description="seed of the completions")
    temperature: PositiveFloat = Field(1.0, description="temperature of the prior; below 1 is less varied")
    interpolate: bool = Field(
        False, description="also write interpolation.gif, from A to the result place by place"
    )
    posters: str | None = Field(
        None, description="a YAML file with a list `edits` of {a, b, region} and `completions` of {a, keep}"
    )
    invert: bool = Field(False, description="image files are dark ink on white")
    out: str = Field(description="the folder to write to")


def main(argv: Sequence[str]) -> None:
    command: Edit = validate(Edit, parse_flags(Edit, "npdraw_dist.edit", argv))
    _check_pairs(command)

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.core import regions
    from npdraw_dist.edit import pictures
    from npdraw_dist.pipeline.models import chosen_model, load_npdraw
    from npdraw_dist.pipeline.sample import local_folder

    posters = None if command.posters is None else pictures.Posters.read(command.posters)
    folder = chosen_model(command.model)
    model = load_npdraw(folder)
    edits, grid = pictures.Edits(model, folder, command.invert), model.grid
    if posters is not None:
        with local_folder(command.out) as out:
            print(", ".join(map(str, edits.write_posters(posters, out))))
        return
    completes = command.complete is not None or command.keep is not None
    edit = pictures.Edit(
        regions.parse_region(command.region, grid),
        regions.parse_region(command.remove, grid),
        dict([regions.parse_move(command.move, grid)] if command.move else []),
        pictures.places_to_keep(model, command.complete, command.keep) if completes else None,
        command.n,
        command.seed,
        command.temperature,
    )
    assert command.a is not None
    a, b = edits.open(command.a), edits.open(command.b)[0] if command.b else None
    with local_folder(command.out) as out:
        dropped = edits.write_edit(a, b, edit, out, command.interpolate)
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
        raise UserError("--a is missing: the drawing to edit; see --help")
    if (command.b is None) != (command.region is None):
        raise UserError("--b and --region go together: the drawing to take parts from, and the places")
    if command.complete is not None and command.keep is not None:
        raise UserError("--complete and --keep: give one, the places to draw anew or those to keep")
    completed = command.complete is not None or command.keep is not None
    if not completed and command.n != 1:
        raise UserError("--n counts completions: give --complete or --keep with it")
    if not completed and command.region is None and command.remove is None and command.move is None:
        raise UserError(
            "nothing to do: give --b B --region R0:R1,C0:C1, --remove, --move, --complete or --keep"
        )


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
