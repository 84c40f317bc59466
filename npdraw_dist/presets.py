"""npdraw presets: lists the presets of `npdraw train`."""

from collections.abc import Sequence
from importlib import resources
from itertools import takewhile
from textwrap import indent

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.load import preset_names


class Presets(Command):
    """Lists the presets of `npdraw train`: what each is for, its command, and its cost if measured."""

    examples = ("",)


def describe(name: str) -> str:
    """The first three paragraphs of a preset's comment: its purpose, its command, its cost if measured."""
    text = (resources.files("npdraw_dist.config") / "presets" / f"{name}.yaml").read_text()
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n\n".join("\n".join(line[2:] for line in comment).split("\n\n")[:3])


def main(argv: Sequence[str]) -> None:
    validate(Presets, parse_flags(Presets, "npdraw_dist.presets", argv))
    print("\n\n".join(f"{name}\n{indent(describe(name), '  ')}" for name in preset_names()))


if __name__ == "__main__":
    run_command(main)
