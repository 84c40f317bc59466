"""The help of a command: the settings that matter, or all of them, with the values that they will have."""

import argparse
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from npdraw_dist.config.section import FOUND
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
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        kinds = {self.field.annotation, *get_args(self.field.annotation)} - {NoneType}
        return bool in kinds and len(kinds - {bool, self.field.annotation}) == 0


def marked(model: type[BaseModel], mark: str) -> dict[str, Any]:
    """`mark` in place of the value of every setting of `model`, nested."""
    inner = {name: field.annotation for name, field in model.model_fields.items()}
    return {
        name: marked(kind, mark) if isinstance(kind, type) and issubclass(kind, BaseModel) else mark
        for name, kind in inner.items()
    }


def settings_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """All settings of `model` that hold a value and that a user may set, by the names that a user writes."""
    for name, field in model.model_fields.items():
        inner, alias = field.annotation, field.validation_alias
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, (*path, name))
        elif FOUND not in field.metadata:
            shown = str(alias.choices[0]) if isinstance(alias, AliasChoices) else name
            yield Setting(".".join((*path, shown)), (*path, name), field)


@dataclass(frozen=True)
class Page:
    """What a help says beside the flags.

    program: `npdraw train`, or `python -m npdraw_dist.train`. main: flags of the short help; all if empty.
    values: nested values that a flag has if it is not given, where these are not the fields' defaults.
    values_from: whose they are, such as "the preset digits".
    """

    program: str
    about: str
    examples: Sequence[str]
    main: Sequence[str]
    values: Mapping[str, Any]
    values_from: str


def render(page: Page, settings: Sequence[Setting], kinds: Mapping[str, str], everything: bool) -> str:
    """The text of the help. kinds: name of a setting -> the kind of its value, such as "int"."""
    named = {one.name: one for one in settings}
    shown = list(settings) if everything or not page.main else [named[name] for name in page.main]
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns)
    parser = argparse.ArgumentParser(
        prog=page.program,
        usage=f"{page.program} [--FLAG VALUE ...]",
        description=page.about,
        epilog=_epilog(page, len(settings) - len(shown)),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, TEXT_AT, width),
        add_help=False,
    )
    of_values = f"values without a flag: those of {page.values_from}" if page.values_from else ""
    groups = {"": parser.add_argument_group("flags", of_values or None)}
    for one in shown:
        section = one.section if everything else ""
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        _add(groups[section], one, page.values, kinds.get(one.name, ""))
    common = parser.add_argument_group("of every command")
    common.add_argument("--help", action="store_true", help="the settings that matter")
    common.add_argument("--help-all", action="store_true", help="all settings")
    for flag, what in process.FLAGS.items():
        common.add_argument(flag, action="store_true", help=what)
    common.add_argument("--version", action="store_true", help="print the version")
    return parser.format_help()


def _add(group: Any, one: Setting, values: Mapping[str, Any], kind: str) -> None:
    """Adds the line of a setting to a group of argparse."""
    value = _value(one, values)
    text = (one.field.description or "").replace("%", "%%")
    if one.field.is_required():
        text += " (required)"
    elif value is not None and value != [] and not (one.is_switch and value is False):
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        text += f" ({shown})".replace("%", "%%")
    if one.is_switch and value is False:
        group.add_argument(f"--{one.name}", action="store_true", help=text)
    else:
        group.add_argument(
            f"--{one.name}", metavar="true|false" if one.is_switch else _readable(kind), help=text
        )


def _readable(kind: str) -> str | None:
    """The kind of a value as pydantic-settings writes it, such as "{a,b}" or "list[str]", for a reader."""
    if several := re.fullmatch(r"(?:list|tuple)\[(\w+).*\]", kind):
        return f"{several[1]} ..." if kind.startswith("list") else f"{several[1]},..."
    return kind.strip("{}").replace(",", "|").replace("Path", "path") or None


def _value(one: Setting, values: Mapping[str, Any]) -> Any:
    """What the setting is without its flag."""
    found: Any = values
    for name in one.path:
        if not isinstance(found, Mapping) or name not in found:
            return None if one.field.is_required() else one.field.get_default(call_default_factory=True)
        found = found[name]
    return found


def _epilog(page: Page, hidden: int) -> str:
    lines = ["examples:", *(f"  {line}" for line in page.examples)] if page.examples else []
    if hidden:
        lines += ["", f"{hidden} more settings: {page.program} --help-all"]
    return "\n".join(lines).strip()
