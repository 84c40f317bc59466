"""The help of a command: the settings that matter, or all of them, with the values that they will have."""

import argparse
import inspect
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import CLI_SUPPRESS

from npdraw_dist.core import process

WIDEST = 110  # columns
TEXT_AT = 34  # the column of the descriptions, at most


@dataclass(frozen=True)
class Setting:
    """A flag `--name`. path: where its value is in nested dictionaries."""

    name: str
    path: tuple[str, ...]
    field: FieldInfo

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        kind = self.field.annotation
        return set(get_args(kind) or (kind,)) - {NoneType} == {bool}

    def value_in(self, values: Mapping[str, Any]) -> Any:
        """What it is without its flag: in nested `values`, else its default."""
        found: Any = values
        for name in self.path:
            if not isinstance(found, Mapping) or name not in found:
                required = self.field.is_required()
                return None if required else self.field.get_default(call_default_factory=True)
            found = found[name]
        return found


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def marked(model: type[BaseModel], mark: str) -> dict[str, Any]:
    """`mark` in place of the value of every setting of `model`, nested."""
    inner: dict[str, Any] = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: marked(kind, mark) if is_section(kind) else mark for name, kind in inner.items()}


def settings_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """All settings of `model` that hold a value and that a user may set, by the names that a user writes."""
    for name, field in model.model_fields.items():
        inner: Any = field.annotation
        alias = field.validation_alias
        if is_section(inner):
            yield from settings_of(inner, (*path, name))
        elif CLI_SUPPRESS not in field.metadata:
            shown = str(alias.choices[0]) if isinstance(alias, AliasChoices) else name
            yield Setting(".".join((*path, shown)), (*path, name), field)


def render(
    prog: str,
    command: Any,
    actions: Mapping[str, argparse.Action],
    of_values: tuple[str, Mapping[str, Any]],
    everything: bool,
) -> str:
    """The help of a `config.cli.Command`, started as `prog`: its main flags, or all.

    actions: name of a setting -> what pydantic-settings made of it. of_values: as of `without_flags`.
    """
    settings = {one.name: one for one in settings_of(command)}
    whose, values = of_values
    first = () if everything else command.first_flags
    main = settings if everything or not command.main_flags else (*first, *command.main_flags)
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns)
    lines = [f"  {prog} {example}".rstrip() for example in command.examples]
    lines = ["examples:", *lines] if lines else []
    if len(main) < len(settings):
        lines += ["", f"{len(settings) - len(main)} more settings: {prog} --help-all"]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--FLAG VALUE ...]",
        description=inspect.cleandoc(command.__doc__ or ""),
        epilog="\n".join(lines).strip(),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, TEXT_AT, width),
        add_help=False,
    )
    whose = f"values without a flag: those of {whose}" if whose else ""
    groups = {}
    if first:
        groups["first"] = parser.add_argument_group("those that matter most", whose or None)
        whose = ""
    groups[""] = parser.add_argument_group("others" if first else "flags", whose or None)
    for name in main:
        section = "first" if name in first else name.rpartition(".")[0] if everything else ""
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        _add(groups[section], settings[name], values, str(actions[name].metavar or ""))
    common = parser.add_argument_group("of every command")
    common.add_argument("--help", action="store_true", help="the settings that matter")
    common.add_argument("--help-all", action="store_true", help="all settings")
    for flag, what in process.FLAGS.items():
        common.add_argument(flag, action="store_true", help=what)
    common.add_argument("--version", action="store_true", help="print the version")
    return parser.format_help()


def _add(group: Any, one: Setting, values: Mapping[str, Any], kind: str) -> None:
    """Adds the line of a setting to a group of argparse. kind: as pydantic-settings writes it, as "{a,b}"."""
    value, text = one.value_in(values), one.field.description or ""
    off = one.is_switch and value is False
    if one.field.is_required():
        text += " (required)"
    elif value is not None and value != [] and not off:
        text += f" ({str(value).lower() if isinstance(value, bool) else value})"
    text = text.replace("%", "%%")
    if off:
        group.add_argument(f"--{one.name}", action="store_true", help=text)
        return
    shown = kind.strip("{}").replace(",", "|").replace("Path", "path") or None
    if several := re.fullmatch(r"(list|tuple)\[(\w+).*\]", kind):
        shown = f"{several[2]} ..." if several[1] == "list" else f"{several[2]},..."
    group.add_argument(f"--{one.name}", metavar="true|false" if one.is_switch else shown, help=text)
