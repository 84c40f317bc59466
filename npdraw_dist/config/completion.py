"""Completion of commands, flags and choices in a shell: a script by shtab, which runs no Python later."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name

import shtab

from npdraw_dist.config.cli import make_parser
from npdraw_dist.config.load import preset_names
from npdraw_dist.core.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
# Names of settings whose value is a file or a folder.
PLACES = {"path", "out", "config", "model", "storage", "from", "compare", "extractor", "posters", "a", "b"}


def print_script(words: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> None:
    """Prints the script of the shell that `words` name.

    commands: name -> "module:class" of its flags, and what it does.

    Raises UserError if they name none.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"completion takes the name of a shell: {', '.join(SHELLS)}")
    whole = argparse.ArgumentParser("npdraw")
    parsers = whole.add_subparsers()
    for name, (flags, does) in commands.items():
        made = make_parser(resolve_name(flags), f"npdraw {name}", [])
        for key, action in made.actions.items():
            kind = str(action.metavar or "")
            if action.nargs == "?":  # a switch
                action.choices = ["true", "false"]
            elif key == "preset":
                action.choices = preset_names()
            elif re.fullmatch(r"\{[\w,]+\}", kind):
                action.choices = kind.strip("{}").split(",")
            elif kind == "Path" or key.rpartition(".")[-1] in PLACES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way
        parsers.add_parser(name, parents=[made.parser], add_help=False, help=does)
    print(shtab.complete(whole, words[0]))
