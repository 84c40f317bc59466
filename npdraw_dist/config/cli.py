"""Command lines from typed fields, by pydantic-settings. A user's error is one line and exit status 2."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from npdraw_dist.config.load import explain, known_keys, nearest
from npdraw_dist.config.prepared import with_sizes
from npdraw_dist.core.errors import UserError


class _Parser(argparse.ArgumentParser):
    """argparse's parser; its errors are UserErrors that name the nearest known flag."""

    known: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0].split("=")[0]
            if not word.startswith("-"):
                raise UserError(f"{word!r} belongs to no flag; a setting is written --section.name VALUE")
            word = word.lstrip("-")
            raise UserError(f"unknown flag --{word}{nearest(word, self.known)}")
        raise UserError(message)


def _add_argument(parser: argparse.ArgumentParser, *flags: str, **options: Any) -> Any:
    """Adds two dashes for a one-letter field, as in `--n 64`; pydantic-settings gives it one dash."""
    return parser.add_argument(*flags, *(f"-{flag}" for flag in flags if len(flag) == 2), **options)


class Command(BaseSettings):
    """Base of a command's flags. The field `key` of a section is the flag `--section.key`."""

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


def parse_flags(command: type[Command], program: str, argv: Sequence[str]) -> dict[str, Any]:
    """The flags in `argv`, and only those, as a nested dictionary. Raises UserError."""
    parser = _Parser(
        prog=sys.argv[0] if sys.argv[0].startswith("npdraw ") else f"python -m {program}",
        description=command.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.known = list(known_keys(command))
    source: CliSettingsSource[Any] = CliSettingsSource(
        command,
        cli_parse_args=list(argv),
        root_parser=parser,
        add_argument_method=_add_argument,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return dict(source())


def dashed(default: Any, name: str, description: str) -> Any:
    """A field whose flag has dashes: `--num-samples` for `num_samples`."""
    names = AliasChoices(name, name.replace("-", "_"))
    return Field(default, validation_alias=names, description=description)


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs `main(argv)`. A user's error prints one line on stderr and exits with status 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
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
