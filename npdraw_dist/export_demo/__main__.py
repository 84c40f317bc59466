"""npdraw export-demo: writes a model as one HTML file that draws in a browser without a server."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveFloat

from npdraw_dist.config.cli import Command, Model, parse_flags, run_command, validate

BROWSER_SEEDS = 2**32  # number of seeds that the page's random generator accepts


class ExportDemo(Command):
    """Writes one HTML file that samples, replays and edits without a server. It loads nothing else."""

    examples: ClassVar[tuple[str, ...]] = (
        "--out digits.html",
        '--model runs/emoji --out emoji.html --name "Emoji"',
    )

    model: Model = None
    out: str = Field(description="the HTML file to write")
    name: str | None = Field(
        None, min_length=1, description="the model's name on the page; if not given, its run or folder"
    )
    license: str | None = Field(
        None, min_length=1, description="licence on the page; if not given, that of the model's card"
    )
    seed: int = Field(
        1,
        ge=0,
        lt=BROWSER_SEEDS,
        description="seed of the first drawing; torch makes another drawing from it",
    )
    temperature: PositiveFloat | None = Field(
        None, description="the prior's temperature at the start; if not given, the model's own"
    )


def main(argv: Sequence[str]) -> None:
    command: ExportDemo = validate(ExportDemo, parse_flags(ExportDemo, "npdraw_dist.export_demo", argv))

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.export_demo.page import Facts, demo_page, license_of
    from npdraw_dist.pipeline.trained_models import chosen_model, load_npdraw, name_of
    from npdraw_dist.system.storage import open_filesystem, require_writable, write_text

    require_writable(command.out)
    folder = chosen_model(command.model)
    model = load_npdraw(folder)
    name, terms = command.name or name_of(command.model or folder), command.license or license_of(folder)
    page = demo_page(model, Facts(name, terms, model.temperature_of(command.temperature), command.seed))
    write_text(*open_filesystem(command.out), page)
    print(f"{name}: {command.out}, {len(page.encode()) / 1e6:.2f} MB; open it in a browser")


if __name__ == "__main__":
    run_command(main)
