"""Command lines from typed fields, by pydantic-settings. A user's error is one line and exit status 2."""

import argparse
import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, NoReturn

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from npdraw_dist import __version__
from npdraw_dist.config.help import Page, Setting, render, settings_of
from npdraw_dist.config.load import explain, merge, nearest, preset_names, read_file, read_preset
from npdraw_dist.config.prepared import with_sizes
from npdraw_dist.core import process
from npdraw_dist.core.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")  # that complete
# Names of settings whose value is a file or a folder.
FILES = {"path", "out", "config", "model", "storage", "from", "compare", "extractor", "posters", "a", "b"}


class _Parser(argparse.ArgumentParser):
    """argparse's parser with the project's help; its errors are UserErrors that name the nearest flag."""

    known: Sequence[str] = ()
    write_help: Callable[[bool], str] = staticmethod(lambda everything: "")

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0].split("=")[0]
            if not word.startswith("-"):
                raise UserError(f"{word!r} belongs to no flag; a setting is written --section.name VALUE")
            word = word.lstrip("-")
            raise UserError(f"unknown flag --{word}{nearest(word, self.known)}")
        raise UserError(message)

    def format_help(self) -> str:
        return self.write_help(False)


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, _Parser)
        print(parser.write_help(True), end="")
        parser.exit()


class Command(BaseSettings):
    """Base of a command's flags. The field `key` of a section is the flag `--section.key`.

    main_flags: those of the short help; all if there are none. examples: command lines after the program.
    """

    main_flags: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[str, ...]] = ()

    model_config = SettingsConfigDict(
        extra="forbid", allow_inf_nan=False, cli_hide_none_type=True, cli_avoid_json=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the flags. Environment variables such as SEED or N have other meanings."""
        return (init_settings,)

    @classmethod
    def without_flags(cls, given: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
        """Whose values settings have that no flag sets, and these values, nested, for the help.

        given: the flags of the command line, as far as they can be told.
        """
        return "", {}


def of_preset(given: Mapping[str, str], preset: str) -> tuple[str, Mapping[str, Any]]:
    """`without_flags` of a command whose settings come from a preset, then a config file."""
    preset = given.get("preset", preset)
    values = {"preset": preset, **read_preset(preset)}
    if "config" not in given:
        return f"the preset {preset}", values
    return f"{given['config']} over the preset {preset}", merge(values, read_file(Path(given["config"])))


@dataclass(frozen=True)
class Flags:
    """The parser of a command's flags. actions: name of a setting -> its action. source: parses the words."""

    parser: _Parser
    actions: dict[str, argparse.Action]
    source: CliSettingsSource[Any]


def make_parser(command: type[Command], prog: str, words: Sequence[str]) -> Flags:
    """The flags of `command`, which `words` give. prog: how it is started, for its help."""
    parser = _Parser(prog=prog, allow_abbrev=False)
    settings, actions = list(settings_of(command)), dict[str, argparse.Action]()
    parser.known = [setting.name for setting in settings]

    def write_help(everything: bool) -> str:
        values_from, values = command.without_flags(_given(words))
        about = inspect.cleandoc(command.__doc__ or "")
        examples = [f"{prog} {example}".rstrip() for example in command.examples]
        kinds = {name: str(action.metavar or "") for name, action in actions.items()}
        page = Page(prog, about, examples, command.main_flags, values, values_from)
        return render(page, settings, kinds, everything)

    parser.write_help = write_help
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, dest=argparse.SUPPRESS, help="all settings")
    parser.add_argument("--version", action="version", version=f"npdraw {__version__}")
    for flag, what in process.FLAGS.items():  # for completion: `parse_flags` takes them out
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=what)
    source: CliSettingsSource[Any] = CliSettingsSource(
        command,
        cli_parse_args=_usual(words, settings),
        root_parser=parser,
        add_argument_method=partial(_add_argument, actions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return Flags(parser, actions, source)


def _add_argument(actions: dict[str, argparse.Action], parser: Any, *flags: str, **options: Any) -> Any:
    """Adds a flag, also to `actions`.

    A one-letter field has two dashes, as in `--n 64`; pydantic-settings gives it one. A switch needs no
    value: `--dry-run` is `--dry-run true`.
    """
    if options.get("metavar") == "bool":
        options |= {"nargs": "?", "const": "true"}
    action = parser.add_argument(*flags, *(f"-{flag}" for flag in flags if len(flag) == 2), **options)
    actions |= {flag.lstrip("-"): action for flag in flags}
    return action


def _usual(words: Sequence[str], settings: Sequence[Setting]) -> list[str]:
    """`words` with the usual name of each flag: `-` and `_` are the same, and `--no-x` is `--x false`."""
    names = {setting.name.replace("-", "_"): setting for setting in settings}
    usual = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        if name in names:
            word = f"--{names[name].name}{equals}{value}"
        elif name.startswith("no_") and name[3:] in names and names[name[3:]].is_switch and not equals:
            word = f"--{names[name[3:]].name}=false"
        usual.append(word)
    return usual


def _given(words: Sequence[str]) -> dict[str, str]:
    """The flags among `words` that have a value, by name."""
    pairs = [word.partition("=")[::2] for word in words]
    found = {name[2:]: value for name, value in pairs if name.startswith("--") and value}
    for word, value in itertools.pairwise(words):
        if word.startswith("--") and "=" not in word and not value.startswith("--"):
            found[word[2:]] = value
    return found


def parse_flags(command: type[Command], program: str, argv: Sequence[str]) -> dict[str, Any]:
    """The flags in `argv`, and only those, as a nested dictionary. Raises UserError.

    `--quiet` and `--verbose` are not among them: they set what this process prints.
    """
    prog = sys.argv[0] if sys.argv[0].startswith("npdraw ") else f"python -m {program}"
    return dict(make_parser(command, prog, _with_verbosity(argv)).source())


def _with_verbosity(argv: Sequence[str]) -> list[str]:
    """`argv` without `--quiet` and `--verbose`, which are set. Raises UserError if both are there."""
    if {"--quiet", "--verbose"} <= set(argv):
        raise UserError("--quiet and --verbose: give one of them")
    process.set_verbosity(argv)
    return [word for word in argv if word not in process.FLAGS]


def dashed(default: Any, name: str, description: str) -> Any:
    """A field whose flag has dashes: `--num-samples` for `num_samples`."""
    names = AliasChoices(name, name.replace("-", "_"))
    return Field(default, validation_alias=names, description=description)


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs `main(argv)`. A user's error prints one line on stderr and exits with status 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        if process.is_verbose():
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


def validate(command: type[BaseModel], values: dict[str, Any]) -> Any:
    """Builds `command` from parsed flags, with the sizes of prepared data. Raises UserError in one line."""
    try:
        return command.model_validate(with_sizes(values))
    except ValidationError as error:
        raise UserError(explain(error, command, "--")) from None


def print_script(words: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> None:
    """Prints the completion script of the shell that `words` name: commands, flags and choices.

    commands: name -> "module:class" of its flags, and what it does. Raises UserError if they name none.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"completion takes the name of a shell: {', '.join(SHELLS)}")
    import shtab  # its script completes without Python

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
            elif kind == "Path" or key.rpartition(".")[-1] in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way
        parsers.add_parser(name, parents=[made.parser], add_help=False, help=does)
    print(shtab.complete(whole, words[0]))
