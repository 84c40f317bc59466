"""Finds and loads trained models and banks; checks those that a run starts from; writes models' results."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from pyarrow import fs

from npdraw_dist.config.data import GridConfig
from npdraw_dist.config.load import dotted, flat
from npdraw_dist.config.networks import BaselineConfig, ImageNetwork, PriorNetwork, VAENetwork
from npdraw_dist.config.registry import SOURCES
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.section import size_of
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, spec_of
from npdraw_dist.core.parts import PartBank
from npdraw_dist.measure.metrics import PUBLISHED
from npdraw_dist.nn import hub
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.model_files import CONFIG, WEIGHTS, ZOO, model_folder
from npdraw_dist.system.storage import (
    is_file,
    local_copy,
    open_filesystem,
    read_bytes,
    sha256,
    write_text,
)

RUNS = "runs"  # the default --storage of `train`
OF_PACKAGE = "emoji"  # the default model if there is neither --model nor a run
BANK = "bank.safetensors"
# Names of the results in a model's config.json. n: number of images, k: number of importance samples.
STATED = ("n", "k", *PUBLISHED)


def chosen_model(model: str | None) -> str:
    """The model folder or URI for a value of --model, which is a run, a model folder, a URI or a hub id.

    Without a value, it is the last model that a run under ./runs wrote, or OF_PACKAGE if there is none.
    Raises UserError if there is no model.
    """
    if model is not None:
        return model_folder(model, f"--model {model}")
    # Models are sorted by the time of their weights, since an evaluation rewrites config.json.
    models = sorted(Path(RUNS).glob(f"*/model/{WEIGHTS}"), key=lambda path: path.stat().st_mtime)
    if not models:
        print(f"no --model is given, and {RUNS}/ has no run; taking {OF_PACKAGE}, a model of the package")
        return model_folder(OF_PACKAGE)
    print(f"no --model is given; taking the last run, {models[-1].parents[1]}")
    return str(models[-1].parent)


def name_of(where: str) -> str:
    """The last name in a path, URI or hub id. For the folder `model` of a run, it is the run's name."""
    path = str(Path(where).resolve()) if "://" not in where and Path(where).exists() else where
    names = [name for name in path.split("/") if name not in ("", "model")]
    return names[-1] if names else "NP-DRAW"


def load_model(folder: str) -> GenerativeModel:
    """Loads a model of any kind, in eval mode, from a value of --model. Raises UserError if this fails."""
    name = f"--model {folder}"
    return hub.load_from(model_folder(folder, name), name)


def read_bank(where: str) -> PartBank:
    """Loads a part bank from a value of --bank (a run, its folder bank/, or the file bank.safetensors).

    Raises UserError if there is no bank.
    """
    with local_copy(*_bank_file(where, f"--bank {where}")) as local:
        return PartBank.load(local)


def _bank_file(where: str, name: str) -> tuple[fs.FileSystem, str]:
    filesystem, path = open_filesystem(where)
    for file in (path, f"{path}/{BANK}", f"{path}/bank/{BANK}"):
        if is_file(filesystem, file):
            return filesystem, file
    raise UserError(f"{name} holds no {BANK}; make one with `npdraw bank --out {where}`")


def load_npdraw(folder: str) -> NPDraw:
    """Loads an NP-DRAW model like `load_model`. Raises UserError on other kinds, which draw no parts."""
    model = load_model(folder)
    if not isinstance(model, NPDraw):
        raise UserError(f"--model {folder} is of kind {model.spec.kind}, which draws no parts")
    return model


def read_spec(folder: str) -> ModelSpec | BaselineSpec:
    """The spec in config.json of a model folder or URI. Raises UserError as `load_model` does."""
    name = f"--model {folder}"
    return hub.read_spec(model_folder(folder, name), name)


@dataclass(frozen=True)
class SourceModel:
    """The model that a run starts from. folder: a path or URI. sha256: hexadecimal digest of its weights."""

    folder: str
    spec: ModelSpec | BaselineSpec
    sha256: str

    @classmethod
    def read(cls, model: str, digest: str | None = None) -> "SourceModel":
        """Reads the spec and hashes the weights. model: a value of `--model`.

        digest: the SHA-256 of the weights that a resumed run began with. Raises UserError if there is no
        trained model, or if its weights have another digest.
        """
        name = f"init.model {model}"
        folder = model_folder(model, name)
        spec, (filesystem, path) = hub.read_spec(folder, name), open_filesystem(folder)
        try:
            found = sha256(filesystem, f"{path}/{WEIGHTS}")
        except OSError:
            raise UserError(f"{name} has no {WEIGHTS} that can be read") from None
        if digest not in (None, found):
            raise UserError(
                f"{name} has other weights than those that the run began with (init.sha256); give the path "
                "of the first weights, or take another --name"
            )
        return cls(folder, spec, found)

    def __str__(self) -> str:
        return f"init.model {self.folder}, of {_size(self.spec)} images"

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The nested settings that the model decides. given: the settings of the user and the preset.

        Training starts with hard draws of z, with which the model's own training ended. The exception is
        vae.draws 1, with which only relaxed draws train q(z|x).
        """
        given = dotted(given)
        values: dict[str, dict[str, Any]] = {"model": {"kind": self.spec.kind}, **_network(self.spec)}
        source = SOURCES.get(str(given.get("data.source") or "digits"))
        if source is not None and source.shape is None:
            channels, *size = self.spec.image_shape
            values["data"] |= {"image_size": size_of(*size), "channels": channels}
        if isinstance(self.spec, ModelSpec) and str(given.get("vae.draws")) != "1":
            values["vae"]["relaxed_images"] = 0
        return values

    def require_fit(self, experiment: Experiment) -> None:
        """Raises UserError if the network of `experiment` differs from the model's. The message lists how."""
        own = self.spec
        if experiment.model.kind != own.kind:
            kind = "a model of parts" if own.kind == "npdraw" else f"of kind {own.kind}"
            raise UserError(f"init.model is {kind}, but model.kind is {experiment.model.kind}")
        wanted, got = flat(_network(own)), flat(_network(spec_of(experiment)))
        wrong = [f"{name} {value}, not {got[name]}" for name, value in wanted.items() if value != got[name]]
        if experiment.data.shape != own.image_shape:
            wrong.append(f"images of {_size(own)}, not {'x'.join(map(str, experiment.data.shape))}")
        if wrong:
            raise UserError(f"init.model {self.folder} needs {'; '.join(sorted(wrong))}")


@dataclass(frozen=True)
class SourceBank:
    """The part bank that a run starts from. sha256: hexadecimal digest of its file."""

    where: str
    bank: PartBank
    sha256: str

    @classmethod
    def read(cls, where: str, digest: str | None = None) -> "SourceBank":
        """Loads a bank. where: a run, a folder or a file.

        digest: the SHA-256 of the file that a resumed run began with. Raises UserError if there is no bank,
        or if its file has another digest.
        """
        filesystem, file = _bank_file(where, f"init.bank {where}")
        found = sha256(filesystem, file)
        if digest not in (None, found):
            raise UserError(
                f"init.bank {where} is another bank than the run began with (init.sha256); give the path of "
                "the first bank, or take another --name"
            )
        with local_copy(filesystem, file) as local:
            return cls(where, PartBank.load(local), found)

    def __str__(self) -> str:
        return f"init.bank {self.where}, of {len(self.bank)} parts"

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The nested settings that the bank decides, which are the number and the side of the parts.

        The side becomes grid.patch and grid.stride, unless `given` sets this patch and no larger stride.
        """
        side, given = self.bank.parts.shape[-1], dotted(given)
        known = given.get("grid.patch") == side and int(given.get("grid.stride", side)) <= side
        grid = {} if known else {"grid": {"patch": side, "stride": side}}
        return {"bank": {"size": len(self.bank)}, **grid}

    def require_fit(self, experiment: Experiment) -> None:
        """Raises UserError if `experiment` has no parts, or if the bank's parts differ in number or size."""
        channels, side = self.bank.parts.shape[1:3]
        wanted = experiment.data.shape[0], experiment.grid.patch
        if not experiment.has_parts:
            raise UserError(f"init.bank is for NP-DRAW, but model.kind is {experiment.model.kind}")
        if (channels, side) != wanted:
            raise UserError(
                f"{self} of {channels}x{side}x{side} pixels; the run draws parts of "
                f"{wanted[0]}x{wanted[1]}x{wanted[1]}"
            )
        if experiment.bank.size != len(self.bank):
            raise UserError(f"{self}; leave out bank.size {experiment.bank.size}")


def _network(spec: ModelSpec | BaselineSpec) -> dict[str, dict[str, Any]]:
    """The nested settings that define a network with this spec."""
    values, prior = spec.model_dump(mode="json"), spec.prior
    found: dict[str, dict[str, Any]] = {"data": {"binarize": spec.binarize}}
    if prior is not None:
        found["prior"] = prior.model_dump(mode="json", include=set(PriorNetwork.model_fields))
    if isinstance(spec, ModelSpec):
        sections: dict[str, Any] = {"grid": GridConfig, "vae": VAENetwork}
        found["bank"] = {"size": spec.parts}
        found["parse"] = {"order": spec.order, "steps": spec.steps}
    else:
        sections = {"baseline": BaselineConfig, "vae": ImageNetwork}
        if spec.grid is not None:
            found["grid"] = spec.grid.model_dump(mode="json")
    return found | {key: {name: values[name] for name in of.model_fields} for key, of in sections.items()}


def _size(spec: ModelSpec | BaselineSpec) -> str:
    return "x".join(map(str, spec.image_shape))


def source_model(experiment: Experiment) -> GenerativeModel:
    """Loads the model of init.model. Raises UserError if it is gone, damaged or changed."""
    return load_model(SourceModel.read(str(experiment.init.model), experiment.init.sha256).folder)


def source_parts(experiment: Experiment) -> PartBank:
    """The parts of init.bank, or else of init.model. Raises UserError if its file is gone or changed."""
    init = experiment.init
    if init.bank is not None:
        return SourceBank.read(init.bank, init.sha256).bank
    model = source_model(experiment)
    assert isinstance(model, NPDraw)
    return model.bank


def write_results(filesystem: fs.FileSystem, folder: str, results: Mapping[str, Any]) -> bool:
    """Writes `results` to config.json of the model in `folder`; returns whether it wrote them.

    Earlier results stay if they rank higher. Results rank by split (the test split is highest), then by
    number of images, then by number of importance samples.
    """

    def strength(some: Mapping[str, Any]) -> tuple[bool, int, int]:
        return some.get("split") == "test", some.get("n", 0), some.get("k", 0)

    config = json.loads(read_bytes(filesystem, f"{folder}/{CONFIG}"))
    before = config.get("results") or {}
    if before and strength(results) < strength(before):
        return False
    stated = {**config, "results": dict(results)}
    write_text(filesystem, f"{folder}/{CONFIG}", json.dumps(stated, indent=2) + "\n")
    return True


def publish(model: str, evaluation: Mapping[str, Any]) -> str | None:
    """Writes the result of `evaluate` to the folder or URI `model`; returns the path of its config.json.

    Writes nothing and returns None if the model comes with the package, is a download of the hub or is
    read-only, if it was trained on other data, or if its results rank higher (`write_results`).
    """
    fixed = (ZOO.resolve(), Path(HF_HUB_CACHE).resolve())  # folders of models that must not change
    not_ours = "://" not in model and any(map(Path(model).resolve().is_relative_to, fixed))
    if not_ours or evaluation["protocol"]["data_of_training"] != "same":
        return None
    numbers = {name: evaluation[name] for name in STATED if name in evaluation}
    results = {"split": evaluation["split"], **numbers, "protocol": _measured_how(evaluation)}
    with contextlib.suppress(OSError):
        if write_results(*open_filesystem(model), results):
            return f"{model.rstrip('/')}/{CONFIG}"
    return None


def _measured_how(evaluation: Mapping[str, Any]) -> str:
    protocol, made_by = evaluation["protocol"], evaluation["made_by"]
    how = f"Measured by `npdraw evaluate` {made_by['version']} on {made_by['date'][:10]}"
    how += f", seed {protocol['seed']}"
    distance = protocol["distance"]
    if isinstance(distance, Mapping):
        how += (
            f"; distances of {distance['n_generated']:,} samples to {distance['n_real']:,} images by the "
            f"{distance['features']} features of {distance['extractor']}"
        )
    return f"{how}. SHA-256 of the ids of the images: `{protocol['ids_sha256']}`."
