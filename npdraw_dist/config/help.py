"""Renders the help of a command, which shows its main settings or all settings, with their default values."""

import argparse
import copy
import inspect
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import CLI_SUPPRESS

WIDEST = 110  # largest width of the help, in columns
TEXT_AT = 34  # largest column at which a description starts


@dataclass(frozen=True)
class Setting:
    """A flag `--name`. path: the keys of its value in nested dictionaries."""

    name: str
    path: tuple[str, ...]
    field: FieldInfo

    def value_in(self, values: Mapping[str, Any]) -> Any:
        """The value of the setting in the nested `values`, or else its default."""
        found: Any = values
        for name in self.path:
            if not isinstance(found, Mapping) or name not in found:
                required = self.field.is_required()
                return None if required else self.field.get_default(call_default_factory=True)
            found = found[name]
        return found


def flag_of(path: Sequence[str]) -> str:
    """The flag of a setting, without its two dashes, as help, messages and docs write it.

    A setting of a section is written as in config.yaml, such as `scale.use_gpu`; a command's own flag has
    dashes, such as `dry-run`.
    """
    return ".".join(path) if len(path) > 1 else path[0].replace("_", "-")


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def marked(model: type[BaseModel], mark: str) -> dict[str, Any]:
    """Nested values for the help, in which every setting of `model` has the text `mark` as its value."""
    inner: dict[str, Any] = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: marked(kind, mark) if is_section(kind) else mark for name, kind in inner.items()}


def settings_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yields all settings of `model`, and of its sections, that a user may set."""
    for name, field in model.model_fields.items():
        inner: Any = field.annotation
        if is_section(inner):
            yield from settings_of(inner, (*path, name))
        elif CLI_SUPPRESS not in field.metadata:
            yield Setting(flag_of((*path, name)), (*path, name), field)


def groups_of(command: Any, everything: bool) -> dict[str, Sequence[str]]:
    """Title -> flags, for the help of a `config.cli.Command`, either main flags or all flags by section."""
    if everything:
        groups: dict[str, list[str]] = {}
        for one in settings_of(command):
            groups.setdefault(one.name.rpartition(".")[0] or "flags", []).append(one.name)
        return dict(groups)
    if command.first_flags:
        return {"main flags": command.first_flags, "other flags": command.main_flags}
    return {"flags": command.main_flags or [one.name for one in settings_of(command)]}


def render(parser: Any, everything: bool) -> str:
    """The help text of the parser, a `config.cli.Flags`, with its main flags or all flags."""
    command, prog = parser.command, parser.prog
    settings = {one.name: one for one in settings_of(command)}
    groups = groups_of(command, everything)
    whose, values = command.without_flags(parser.words)
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns)
    form = argparse.RawDescriptionHelpFormatter(prog, 2, TEXT_AT, width)
    form.add_usage(f"{prog} [--FLAG VALUE ...]", [], [])
    form.add_text(inspect.cleandoc(command.__doc__ or ""))
    for number, (title, names) in enumerate(groups.items()):
        form.start_section(title)
        form.add_text(f"values in brackets come from {whose}" if whose and number == 0 else None)
        form.add_arguments([_shown(parser.actions[name], settings[name], values) for name in names])
        form.end_section()
    form.start_section("flags of every command")
    form.add_arguments(parser.common)
    form.end_section()
    lines = ["examples:", *(f"  {prog} {example}".rstrip() for example in command.examples)]
    lines = lines if command.examples else []
    if more := len(settings) - sum(map(len, groups.values())):
        lines += ["", f"{more} more settings: {prog} --help-all"]
    form.add_text("\n".join(lines).strip())
    return form.format_help()


def _shown(action: argparse.Action, one: Setting, values: Mapping[str, Any]) -> argparse.Action:
    """The action of a setting as the help shows it, with its value in `values` and a short type."""
    shown, value, text = copy.copy(action), one.value_in(values), one.field.description or ""
    switch, kind = action.nargs == "?", str(action.metavar or "")
    off = switch and value is False
    if one.field.is_required():
        text += " (required)"
    elif value is not None and value != [] and not off:
        text += f" ({str(value).lower() if isinstance(value, bool) else value})"
    if several := re.fullmatch(r"(list|tuple)\[(\w+).*\]", kind):
        kind = f"{several[2]} ..." if several[1] == "list" else f"{several[2]},..."
    else:
        kind = "true|false" if switch else kind.strip("{}").replace(",", "|").replace("Path", "path")
    shown.option_strings, shown.help = [f"--{one.name}"], text.replace("%", "%%")
    shown.nargs, shown.metavar = 0 if off else None, kind or None
    return shown
