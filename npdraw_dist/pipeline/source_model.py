"""The model that a run starts from (`init.model`): what its folder states, and the settings that follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.data import GridConfig
from npdraw_dist.config.networks import BaselineConfig, ImageNetwork, PriorNetwork, VAENetwork
from npdraw_dist.config.registry import SOURCES
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, spec_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.model_files import WEIGHTS, model_folder
from npdraw_dist.core.storage import open_filesystem, sha256
from npdraw_dist.nn.hub import read_spec


@dataclass(frozen=True)
class SourceModel:
    """The model folder `folder` (a path or URI), of any kind. sha256: of its weights, hexadecimal."""

    folder: str
    spec: ModelSpec | BaselineSpec
    sha256: str

    def __str__(self) -> str:
        return f"init.model {self.folder}, of {_shown(self.spec.image_shape)} images"

    def settings(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The nested settings of a run that starts from it. asked: what the user and the preset say.

        Draws are hard from the start, as the model's were at its end, unless vae.draws 1 leaves q(z|x) to
        the relaxed draws.
        """
        spec = self.spec
        data: dict[str, Any] = {"binarize": spec.binarize}
        source = SOURCES.get(str(_get(asked, "data", "source") or "digits"))
        if source is not None and source.shape is None:
            data |= {"image_size": spec.image_shape[1], "channels": spec.image_shape[0]}
        own = _of_parts(spec, asked) if isinstance(spec, ModelSpec) else _of_baseline(spec)
        return {"model": {"kind": spec.kind}, "data": data, **own}

    def require_same_network(self, experiment: Experiment) -> None:
        """Raises UserError that names what the network of `experiment` has otherwise."""
        own = self.spec
        if experiment.model.kind != own.kind:
            kind = "a model of parts" if own.kind == "npdraw" else f"of kind {own.kind}"
            raise UserError(f"init.model is {kind}, and model.kind is {experiment.model.kind}")
        asked = spec_of(experiment)
        wrong = []
        for name in type(own).model_fields.keys() - {"data", "kind"}:
            wanted, got = getattr(own, name), getattr(asked, name)
            if name == "parts":
                if got < wanted:
                    wrong.append(f"bank.size {wanted} or more, not {got}")
            elif name == "prior" and wanted != got and None not in (wanted, got):
                inner = [key for key in type(got).model_fields if getattr(wanted, key) != getattr(got, key)]
                wrong += [f"prior.{key} {getattr(wanted, key)}, not {getattr(got, key)}" for key in inner]
            elif wanted != got:
                setting = self._settings().get(name, name)
                wrong.append(f"{setting} {_shown(wanted)}, not {_shown(got)}")
        if wrong:
            raise UserError(f"init.model {self.folder} needs {'; '.join(sorted(wrong))}")

    def _settings(self) -> dict[str, str]:
        """Field of the spec -> the setting that a user knows it by."""
        return SETTING if isinstance(self.spec, ModelSpec) else SETTING | SETTING_OF_BASELINE


# Field of a spec -> the setting that a user knows it by.
SETTING = {
    "image_shape": "images of",
    "parts": "bank.size",
    "steps": "parse.steps",
    "order": "parse.order",
    "binarize": "data.binarize",
    "authors": "authors.model",
    **{name: f"grid.{name}" for name in GridConfig.model_fields},
    **{name: f"vae.{name}" for name in VAENetwork.model_fields},
}
SETTING_OF_BASELINE = {name: f"baseline.{name}" for name in BaselineConfig.model_fields}


def _of_parts(spec: ModelSpec, asked: Mapping[str, Any]) -> dict[str, Any]:
    values = spec.model_dump(mode="json")
    vae = {name: values[name] for name in VAENetwork.model_fields}
    if str(_get(asked, "vae", "draws")) != "1":
        vae["relaxed_images"] = 0
    return {
        "grid": {name: values[name] for name in GridConfig.model_fields},
        "bank": {"size": spec.parts},
        "parse": {"order": spec.order, "steps": spec.steps},
        "authors": {"model": spec.authors},
        "prior": {name: values["prior"][name] for name in PriorNetwork.model_fields},
        "vae": vae,
    }


def _of_baseline(spec: BaselineSpec) -> dict[str, Any]:
    values = spec.model_dump(mode="json")
    prior = {} if spec.prior is None else {name: values["prior"][name] for name in PriorNetwork.model_fields}
    return {
        "baseline": {name: values[name] for name in BaselineConfig.model_fields},
        "vae": {name: values[name] for name in ImageNetwork.model_fields},
        "prior": prior,
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
    """`model`: what `--model` takes. Raises UserError if there is no trained model."""
    said = f"init.model {model}"
    folder = model_folder(model, said)
    spec, (filesystem, path) = read_spec(folder, said), open_filesystem(folder)
    try:
        return SourceModel(folder, spec, sha256(filesystem, f"{path}/{WEIGHTS}"))
    except OSError:
        raise UserError(f"{said} has no {WEIGHTS} that can be read") from None
