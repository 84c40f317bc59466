"""python -m npdraw_dist.edit: puts parts of one image on the canvas of another and decodes."""

from collections.abc import Sequence

from pydantic import Field
from pydantic_settings import CliImplicitFlag

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_allocator

SOURCES = "an image file, sample:SEED, test:INDEX (of the model's run) or a saved z.safetensors"


class Edit(Command):
    """Puts a region of B's canvas on A's and decodes it. Writes edit.png (A, B and the result side by
    side), edited.png (the result) and z.safetensors, which can be edited again.

    Rows and columns count places of the grid; the end of a range is not included. --remove and --move
    are applied after the region.
    """

    model: str | None = Field(None, description="a model folder; if not given, that of the last run")
    a: str = Field(description=f"the drawing to edit: {SOURCES}")
    b: str | None = Field(None, description="the drawing to take parts from, given like --a; needs --region")
    region: str | None = Field(None, description="R0:R1,C0:C1, the places that take B's parts")
    remove: str | None = Field(None, description="R0:R1,C0:C1, the places to empty")
    move: str | None = Field(None, description="R,C:R,C, moves the parts of one place to another")
    interpolate: CliImplicitFlag[bool] = Field(
        False, description="also write interpolation.gif, from A to the result place by place"
    )
    invert: CliImplicitFlag[bool] = Field(False, description="image files are dark ink on white")
    out: str = Field(description="the folder to write to")


def main(argv: Sequence[str]) -> None:
    command: Edit = validate(Edit, parse_flags(Edit, "npdraw_dist.edit", argv))
    if (command.b is None) != (command.region is None):
        raise UserError("--b and --region go together: the drawing to take parts from, and the places")
    if command.region is None and command.remove is None and command.move is None:
        raise UserError("nothing to do: give --b B --region R0:R1,C0:C1, --remove or --move")

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.edit import apply
    from npdraw_dist.pipeline.models import latest_model, load_npdraw
    from npdraw_dist.pipeline.pictures import local_folder

    folder = command.model or latest_model()
    model = load_npdraw(folder)
    steps = apply.Edit(
        apply.parse_region(command.region or "0:0,0:0", model.grid),
        apply.parse_region(command.remove or "0:0,0:0", model.grid),
        apply.parse_move(command.move, model.grid) if command.move else None,
    )
    z_a = apply.open_drawing(command.a, model, folder, command.invert)
    z_b = apply.open_drawing(command.b, model, folder, command.invert) if command.b else z_a
    with local_folder(command.out) as out:
        dropped = apply.write_edit(model, z_a, z_b, steps, out, command.interpolate)
    if dropped:
        print(f"{dropped} parts of A outside the region were dropped: a drawing has {model.spec.steps} steps")
    print(f"{out}/edit.png, {out}/edited.png, {out}/z.safetensors")


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
