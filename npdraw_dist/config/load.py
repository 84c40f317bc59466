"""Turns a preset, a file and flags into one resolved `Experiment`."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from npdraw_dist.config.help import flag_of, settings_of
from npdraw_dist.config.prepared import with_sizes
from npdraw_dist.config.registry import STARTS
from npdraw_dist.config.registry import load as load_code
from npdraw_dist.config.schema import Experiment
from npdraw_dist.system.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def preset_names() -> list[str]:
    folder = resources.files("npdraw_dist.config") / "presets"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def nearest(word: str, known: Sequence[str]) -> str:
    """The hint "; did you mean X?" if one of `known` is similar to `word`, else an empty string."""
    found = difflib.get_close_matches(word, known, 1, 0.5)
    if not found and "." in word:  # the right key in the wrong section
        found = [name for name in known if name.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    return f"; did you mean {found[0]}?" if found else ""


def require_known(what: str, name: str, known: Sequence[str], why: str = "") -> None:
    """Raises UserError with a hint if `name` is not in `known`. why: text after the list of known names."""
    if name not in known:
        raise UserError(f"unknown {what} {name!r}{nearest(name, known)} (known: {', '.join(known)}{why})")


def names_in(flag: str, what: str, text: str, known: Sequence[str]) -> list[str]:
    """The names in a flag's value, separated by commas. Raises UserError on an unknown name or no name."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        require_known(what, name, known)
    if not names:
        raise UserError(f"{flag} names none of {', '.join(known)}")
    return names


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested dictionaries; later ones override earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = value
    return result


def explain(error: ValidationError, model: type[BaseModel] = Experiment, dashes: str = "") -> str:
    """A pydantic error of `model` as one line. dashes: prefix of the name of a setting."""
    keys = [setting.name for setting in settings_of(model)]
    lines = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        where = flag_of(path) if dashes and path else ".".join(path)
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {where}{nearest(where, keys)}")
        elif item["type"] == "missing":
            lines.append(f"{dashes}{where} is missing; see --help")
        elif item["type"] in ("model_type", "model_attributes_type"):
            inner = next((key for key in keys if key.startswith(f"{where}.")), f"{where}.SETTING")
            lines.append(f"{dashes}{where} is a section; set what it contains, such as {inner}")
        elif item["type"] == "value_error" and isinstance(item.get("ctx", {}).get("error"), ValueError):
            lines.append(str(item["ctx"]["error"]))
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            lines.append(f"{dashes}{where}: {message}, not {item['input']!r}")
    return "; ".join(lines)


def validated(model: type[Model], values: Mapping[str, Any], dashes: str = "", where: str = "") -> Model:
    """Builds `model` from nested `values`. Raises UserError on a wrong value; `where` starts the message."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(where + explain(error, model, dashes)) from None


def build(values: Mapping[str, Any]) -> Experiment:
    """Builds a config from `values`; adds image sizes of prepared data. Raises UserError on a wrong value."""
    return validated(Experiment, with_sizes(values))


def with_changes(experiment: Experiment, *changes: Mapping[str, Any]) -> Experiment:
    """`experiment` with nested `changes`, validated again. Raises UserError if the result is impossible."""
    return build(merge(experiment.model_dump(mode="json"), *changes))


class _Loader(yaml.SafeLoader):
    """Reads `2:8`, a range of workers, as text. YAML 1.1 reads it as 128, a number in base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", re.compile(r"\d+:\d+$")), *others]
    for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} is not a mapping of sections")
    return values


def read_preset(name: str) -> dict[str, Any]:
    require_known("preset", name, preset_names())
    text = (resources.files("npdraw_dist.config") / "presets" / f"{name}.yaml").read_text()
    return read_yaml(text, f"preset {name}")


def read_file(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from None


def resolve(preset: str, config: Path | None, flags: Mapping[str, Any]) -> Experiment:
    """The experiment of a preset, overridden by init's model or bank, then by a file, then by flags.

    Raises UserError if a value is wrong or a file cannot be read.
    """
    own, first = read_file(config) if config else {}, read_preset(preset)
    given = merge(first, own, flags)
    init = given.get("init")
    names = [name for name in STARTS if isinstance(init, Mapping) and init.get(name) is not None]
    if not isinstance(init, Mapping) or len(names) != 1:
        return build(given)
    source = load_code(STARTS[names[0]]).read(str(init[names[0]]), init.get("sha256"))
    known = {"init": {"sha256": source.sha256}}
    try:
        experiment = build(merge(first, source.settings(given), own, flags, known))
    except UserError as error:
        raise UserError(f"{error} ({source})") from None
    source.require_fit(experiment)
    return experiment


def dump(experiment: Experiment) -> str:
    """All settings as YAML, which `--config` reads."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings into one dictionary with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= dotted(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def flat(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Flattens nested settings as `dotted` does, and turns all values but numbers and bools into text."""
    plain = bool | int | float | str
    return {key: one if isinstance(one, plain) else str(one) for key, one in dotted(values).items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, as "key: old -> new"."""
    a, b = dotted(old), dotted(new)
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a | b) if a.get(key) != b.get(key)]
