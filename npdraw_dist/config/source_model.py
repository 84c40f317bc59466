"""The model that a run starts from (`init.model`): what its folder states, and the settings that follow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyarrow import fs
from pydantic import ValidationError

from npdraw_dist.config.places import GridConfig
from npdraw_dist.config.registry import SOURCES
from npdraw_dist.config.schema import Experiment, PriorNetwork, VAENetwork
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import open_filesystem, read_bytes, sha256

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class SourceModel:
    """The model folder `folder` (a path or URI). sha256: of its weights, hexadecimal."""

    folder: str
    spec: ModelSpec
    sha256: str

    def __str__(self) -> str:
        return f"init.model {self.folder}, of {_shown(self.spec.image_shape)} images"

    def settings(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The nested settings of a run that starts from it. asked: what the user and the preset say.

        Draws are hard from the start, as the model's were at its end, unless vae.draws 1 leaves q(z|x) to
        the relaxed draws.
        """
        spec = self.spec
        values = spec.model_dump(mode="json")
        vae = {name: values[name] for name in VAENetwork.model_fields}
        if str(_get(asked, "vae", "draws")) != "1":
            vae["relaxed_images"] = 0
        added = str(_get(asked, "init", "extend_bank") or 0)
        data: dict[str, Any] = {"binarize": spec.binarize}
        source = SOURCES.get(str(_get(asked, "data", "source") or "digits"))
        if source is not None and source.shape is None:
            data |= {"image_size": spec.image_shape[1], "channels": spec.image_shape[0]}
        return {
            "model": {"kind": spec.kind},
            "data": data,
            "grid": {name: values[name] for name in GridConfig.model_fields},
            "bank": {"size": spec.parts + (int(added) if added.isdecimal() else 0)},
            "parse": {"order": spec.order, "steps": spec.steps},
            "prior": {name: values["prior"][name] for name in PriorNetwork.model_fields},
            "vae": vae,
        }

    def require_same_network(self, experiment: Experiment) -> None:
        """Raises UserError that names what the network of `experiment` has otherwise."""
        if experiment.model.kind != "npdraw":
            raise UserError(f"init.model is a model of parts, and model.kind is {experiment.model.kind}")
        own, asked = self.spec, ModelSpec.of(experiment)
        wrong = []
        for name in ModelSpec.model_fields.keys() - {"data", "format", "kind"}:
            wanted, got = getattr(own, name), getattr(asked, name)
            if name == "parts":
                wanted += experiment.init.extend_bank
            if name == "prior" and wanted != got:
                inner = [key for key in type(got).model_fields if getattr(wanted, key) != getattr(got, key)]
                wrong += [f"prior.{key} {getattr(wanted, key)}, not {getattr(got, key)}" for key in inner]
            elif wanted != got:
                wrong.append(f"{SETTING.get(name, name)} {_shown(wanted)}, not {_shown(got)}")
        if wrong:
            raise UserError(f"init.model {self.folder} needs {'; '.join(sorted(wrong))}")


# Field of a spec -> the setting that a user knows it by.
SETTING = {
    "image_shape": "images of",
    "parts": "bank.size",
    "steps": "parse.steps",
    "order": "parse.order",
    "binarize": "data.binarize",
    **{name: f"grid.{name}" for name in GridConfig.model_fields},
    **{name: f"vae.{name}" for name in VAENetwork.model_fields},
}


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _get(values: Mapping[str, Any], section: str, name: str) -> Any:
    found = values.get(section)
    return found.get(name) if isinstance(found, Mapping) else None


def with_source(values: Mapping[str, Any]) -> SourceModel | None:
    """The model that nested settings start from; None if they name none.

    Raises UserError if it cannot be read, or if its weights are not those of init.sha256.
    """
    model, digest = _get(values, "init", "model"), _get(values, "init", "sha256")
    if model is None:
        return None
    found = read_source(str(model))
    if digest not in (None, found.sha256):
        raise UserError(
            f"init.model {model} has other weights than those that the run began with (init.sha256); give "
            "the path of these, or take another --name"
        )
    return found


def read_source(model: str) -> SourceModel:
    """`model`: a model folder, or a run folder, as a path or URI. Raises UserError if it is none."""
    filesystem, path = open_filesystem(model)
    tails = [tail for tail in ("", "/model") if _is_file(filesystem, f"{path}{tail}/{CONFIG}")]
    if not tails:
        raise UserError(f"init.model {model} is no trained model and no run that has one (no {CONFIG})")
    folder, inner = f"{model.rstrip('/')}{tails[0]}", f"{path}{tails[0]}"
    if not _is_file(filesystem, f"{inner}/{WEIGHTS}"):
        raise UserError(f"init.model {folder} has no {WEIGHTS}")
    try:
        spec = json.loads(read_bytes(filesystem, f"{inner}/{CONFIG}"))["spec"]
        kind = spec["kind"]
        if kind != "npdraw":
            raise UserError(f"init.model {folder} is of kind {kind}; a run can start from a model of parts")
        return SourceModel(folder, ModelSpec.model_validate(spec), sha256(filesystem, f"{inner}/{WEIGHTS}"))
    except (ValidationError, ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error!r}"
        raise UserError(f"init.model {folder} is damaged or of another version: {text}") from None


def _is_file(filesystem: fs.FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)
