"""python -m npdraw_dist.edit: parts of one image on the canvas of another, decoded."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliImplicitFlag

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_allocator

DRAWING = "an image file, sample:SEED, test:INDEX (of the model's run) or a z.safetensors saved before"


class Edit(Command):
    """Puts a region of B's canvas on A's and decodes: edit.png (both, and what came of it), edited.png
    and z.safetensors, which can be edited again.

    Rows and columns are those of the grid of places, the end not included. What --remove and --move
    name is done after the region.
    """

    model: str | None = Field(None, description="a model folder; that of the last run if not given")
    a: str = Field(description=f"what is edited: {DRAWING}")
    b: str | None = Field(None, description="whose parts are taken, likewise; needs --region")
    region: str | None = Field(None, description="R0:R1,C0:C1, the places whose parts are B's")
    remove: str | None = Field(None, description="R0:R1,C0:C1, places to empty")
    move: str | None = Field(None, description="R,C:R,C, a place whose parts go to another")
    interpolate: CliImplicitFlag[bool] = Field(
        False, description="also interpolation.gif, from A to what came of it place by place"
    )
    invert: CliImplicitFlag[bool] = Field(False, description="image files are dark ink on white")
    out: str = Field(description="the folder to write to")


def main(argv: Sequence[str]) -> None:
    command: Edit = validate(Edit, parse_flags(Edit, "npdraw_dist.edit", argv))
    if (command.b is None) != (command.region is None):
        raise UserError("--b and --region go together: whose parts, and which")
    if command.region is None and command.remove is None and command.move is None:
        raise UserError("nothing to do: give --b B --region R0:R1,C0:C1, --remove or --move")
    if "://" in command.out:
        raise UserError(f"--out {command.out} is a URI; pictures go to a local folder")

    # Torch takes seconds to import: only once the flags are known to be good.
    from npdraw_dist.edit import apply
    from npdraw_dist.pipeline.drawing import latest_model, load_npdraw

    folder = command.model or latest_model()
    model = load_npdraw(folder)
    grid = model.grid
    what = apply.Edit(
        apply.region_of(command.region or "0:0,0:0", grid),
        apply.region_of(command.remove or "0:0,0:0", grid),
        apply.move_of(command.move, grid) if command.move else None,
    )
    z_a = apply.drawing_of(command.a, model, folder, command.invert)
    z_b = apply.drawing_of(command.b, model, folder, command.invert) if command.b else z_a
    out = Path(command.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lost = apply.write_edit(model, z_a, z_b, what, out, command.interpolate)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from None
    if lost:
        print(f"{lost} parts of A outside the region gave way: a drawing has {model.spec.steps} steps")
    print(f"{out}/edit.png, {out}/edited.png, {out}/z.safetensors")


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
