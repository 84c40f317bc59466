"""Builds the flags of commands from typed fields, with pydantic-settings.

Invalid input exits with status 2 and a message of one line.
"""

import argparse
import errno
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings import PydanticBaseSettingsSource as Source

from npdraw_dist.config.help import flag_of, render, settings_of
from npdraw_dist.config.load import merge, nearest, preset_names, read_file, read_preset, validated
from npdraw_dist.config.prepared import with_sizes
from npdraw_dist.system import process
from npdraw_dist.system.errors import MISTAKE, TRY_AGAIN, StorageFailed, UserError
from npdraw_dist.system.version import __version__

BAD_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)  # system errors that a user's path can cause
PRESET = "digits"  # the default preset
SHELLS = ("bash", "zsh", "tcsh")  # shells for which `npdraw print-shell-setup` prints a script
Own = TypeVar("Own", bound=BaseModel)
Model = Annotated[  # the flag --model of commands that use a trained model
    str | None,
    Field(
        description="a run, a model folder, a URI, an id of the hub, or a model that comes with the package "
        "(`npdraw models`); default: the last run, or emoji if there is none"
    ),
]
# Names of settings whose value is a file or a folder.
FILES = {
    *("path", "out", "bank", "config", "model", "storage", "from"),
    *("compare", "sweeps", "extractor", "posters", "attributes", "a", "b"),
}


# Flags of other programs -> what to write here. Shown is the first text all of whose flags the command has.
HINTS = {
    "lr learning_rate": (
        "the learning rates are --prior.learning_rate and --vae.learning_rate",
        "`npdraw train` has the learning rates",
    ),
    "epochs num_epochs max_epochs": (
        "training is counted in images: --prior.images and --vae.images",
        "training is counted in images: --images",
        "--minutes is the time to train",
    ),
    "resume continue restart": ("the same command again resumes the run of that --name in --storage",),
    "device gpu gpus cuda": (
        "--scale.use_gpu takes a GPU, and --scale.use_gpu false the CPU",
        "--use-gpu takes a GPU, and --use-gpu false the CPU",
    ),
    "batch batch_size bs": ("--train.batch_size is the global batch, over all workers",),
    "workers num_workers nproc": ("--scale.num_workers is the number of processes that train",),
    "fp16 bf16 amp": ("--train.precision bfloat16",),
    "output output_dir out_dir outdir out o": (
        "--out is where the result goes",
        "the run folder is --name in --storage",
    ),
    "dataset data_dir data_path": ("--data.source is the kind of the images, and --data.path their place",),
    "samples num_samples num count": ("--n is the number of drawings",),
    "prompt text class label": ("--condition is what to draw", "--prior.condition class or words"),
    "checkpoint ckpt weights": (
        "--init.model is the model to start from",
        "--model takes a run, a model folder or a name",
    ),
}


def hint(word: str, known: Sequence[str]) -> str:
    """What follows "unknown flag --WORD" in a message: a text of HINTS, or the most similar of `known`."""
    for words, texts in HINTS.items():
        if word.replace("-", "_") in words.split():
            fits = (text for text in texts if set(re.findall(r"--([\w.-]+)", text)) <= set(known))
            return "".join(f"; {text}" for text in list(fits)[:1])
    return nearest(word, known)


class Command(BaseSettings):
    """Base of a command's flags. The field `key` of a section is the flag `--section.key`.

    first_flags: the flags at the top of the short help. main_flags: the other flags of the short help, which
    shows all flags if both are empty.
    examples: command lines without the program. stray: advice for a word that belongs to no flag.
    """

    first_flags: ClassVar[tuple[str, ...]] = ()
    main_flags: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[str, ...]] = ()
    stray: ClassVar[str] = "a setting is written --name VALUE"

    model_config = SettingsConfigDict(
        extra="forbid", allow_inf_nan=False, cli_hide_none_type=True, cli_avoid_json=True
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Source, *_: Any, **named: Any
    ) -> tuple[Source, ...]:
        """Reads only the flags, since environment variables such as SEED or N have other meanings."""
        return (init_settings,)

    @classmethod
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        """The source (a text) and the nested values of the settings, before flags override them.

        The help shows both. words: the command line, which can name a preset or a file as the source.
        """
        return "", {}


class PresetCommand(Command):
    """A command whose settings come from a preset, which a config file and then flags override."""

    stray: ClassVar[str] = "a setting is written --section.name VALUE"

    @classmethod
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        flags.add_argument("--preset", nargs="?", default=PRESET, const=PRESET)
        flags.add_argument("--config", nargs="?")
        given, _ = flags.parse_known_args(words)
        values = {"preset": given.preset, **read_preset(given.preset)}
        if given.config is None:
            return f"the preset {given.preset}", values
        return f"{given.config} over the preset {given.preset}", merge(values, read_file(Path(given.config)))


class Flags(argparse.ArgumentParser):
    """The parser of a command's flags; its errors are UserErrors that name the nearest flag.

    prog: the start of the command line. actions: name of a setting -> its action. common: the actions that
    every command has. source: the parsed `words`.
    """

    def __init__(self, command: type[Command], prog: str, words: Sequence[str]) -> None:
        super().__init__(prog=prog, allow_abbrev=False, add_help=False)
        self.command, self.words, self.actions = command, words, dict[str, argparse.Action]()
        self.common = [
            self.add_argument("--help", "-h", action="help", help="show the main settings"),
            self.add_argument("--help-all", action=_HelpAll, nargs=0, dest="help", help="show all settings"),
            # Help and the shell's script show these; `parse_flags` removes them from the command line.
            *(
                self.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=what)
                for flag, what in process.FLAGS.items()
            ),
            self.add_argument(
                "--version", action="version", version=f"npdraw {__version__}", help="print the version"
            ),
        ]
        self.source: CliSettingsSource[Any] = CliSettingsSource(
            command,
            cli_parse_args=list(words),
            root_parser=self,
            add_argument_method=partial(_add_argument, self.actions),
        )

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0].split("=")[0]
            if not word.startswith("-"):
                raise UserError(f"{word!r} belongs to no flag; {self.command.stray}")
            word = word.lstrip("-")
            known = [setting.name for setting in settings_of(self.command)]
            raise UserError(f"unknown flag --{word}{hint(word, known)}")
        raise UserError(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args([self._spelled(word) for word in args], namespace)

    def _spelled(self, word: str) -> str:
        """The parser's spelling of a flag: `-` and `_` are the same, and `--no-x` becomes `--x=false`."""
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        known = {key.replace("-", "_"): key for key in self.actions}
        off = known.get(name.removeprefix("no_"))
        if flag.startswith("--") and name in known:
            return f"--{known[name]}{equals}{value}"
        if flag.startswith("--") and off is not None and self.actions[off].nargs == "?":
            return f"--{off}=false"
        return word

    def format_help(self, everything: bool = False) -> str:
        return render(self, everything)


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Flags)
        print(parser.format_help(everything=True), end="")
        parser.exit()


def _add_argument(actions: dict[str, argparse.Action], parser: Any, *flags: str, **options: Any) -> Any:
    """Adds a flag to `parser` and its action to `actions`.

    A switch needs no value, so `--dry-run` means `--dry-run true`. The flag of a one-letter field can also
    have two dashes, as in `--n 64`, although pydantic-settings gives it only one dash.
    """
    flags = tuple(f"--{flag_of(flag[2:].split('.'))}" if flag.startswith("--") else flag for flag in flags)
    if options.get("metavar") == "bool":
        options |= {"nargs": "?", "const": "true"}
    action = parser.add_argument(*flags, *(f"-{flag}" for flag in flags if len(flag) == 2), **options)
    actions |= {flag.lstrip("-"): action for flag in flags}
    return action


def parse_flags(command: type[Command], program: str, argv: Sequence[str]) -> dict[str, Any]:
    """The given flags as a nested dictionary. Raises UserError on an invalid flag.

    The result leaves out `--quiet` and `--verbose`, which set what this process prints.
    """
    if set(process.FLAGS) <= set(argv):
        raise UserError(f"give {' or '.join(process.FLAGS)}, not both")
    process.set_verbosity(argv)
    prog = sys.argv[0] if sys.argv[0].startswith("npdraw ") else f"python -m {program}"
    return dict(Flags(command, prog, [word for word in argv if word not in process.FLAGS]).source())


def own_flags(options: type[Own], flags: dict[str, Any]) -> Own:
    """Moves the fields of `options` from `flags` into `options`. Raises UserError on a wrong value."""
    own: Own = validate(options, {name: flags.pop(name) for name in set(options.model_fields) & set(flags)})
    return own


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs `main(argv)` and exits. Invalid input gives status 2 and a message of one line on stderr.

    A failure of the storage gives status 75, since the same command can succeed later.
    """
    process.prepare_to_compute()
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted; the same command again resumes", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        is_users = isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in BAD_PATH)
        if process.is_verbose() or not is_users:
            traceback.print_exc()
        if not is_users:
            sys.exit(1)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(TRY_AGAIN if isinstance(error, StorageFailed) else MISTAKE)
    sys.exit(0)


def validate(command: type[BaseModel], values: dict[str, Any]) -> Any:
    """Builds `command` from flags; adds image sizes of prepared data. Raises UserError on a wrong value."""
    return validated(command, with_sizes(values), "--")


def print_script(words: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> None:
    """Prints a shell's script by which the Tab key finishes commands, flags and choices.

    words: the name of the shell. commands: name -> "module:class" of its flags, and its summary. Raises
    UserError if `words` are not one of SHELLS.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"print-shell-setup takes the name of a shell: {', '.join(SHELLS)}")
    import shtab  # shtab's script completes without starting Python

    whole = argparse.ArgumentParser("npdraw")
    parsers = whole.add_subparsers()
    for name, (flags, does) in commands.items():
        made = Flags(resolve_name(flags), f"npdraw {name}", [])
        for key, action in made.actions.items():
            kind = str(action.metavar or "")
            if action.nargs == "?":  # a switch
                action.choices = ["true", "false"]
            elif key == "preset":
                action.choices = preset_names()
            elif re.fullmatch(r"\{[\w,]+\}", kind):
                action.choices = kind.strip("{}").split(",")
            elif kind == "Path" or key.rpartition(".")[-1] in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab reads this attribute
        parsers.add_parser(name, parents=[made], add_help=False, help=does)
    print(shtab.complete(whole, words[0]))
