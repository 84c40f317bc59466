"""Makes models from a spec, saves them as folders, and loads them from a folder, run, URI or Hugging Face id.

`system.storage` is imported only for a URI, so that a local folder and a hub id do not need pyarrow.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, Spec, spec_type
from npdraw_dist.core.images import png, tiled
from npdraw_dist.measure.metrics import METRICS
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.made_by import stamp, version_of
from npdraw_dist.system.model_files import CARD, CONFIG, WEIGHTS, first_fact, model_folder
from npdraw_dist.system.version import __version__

SAMPLES_FILE = "samples.png"
PROTOCOL = ("split", "n", "k", "protocol")  # keys of `results` that are not rows in a model card's table
SAMPLES, COLUMNS, ENLARGED = 64, 8, 3  # in a card's picture: samples, samples per row, enlargement factor

Model = TypeVar("Model", bound="HubModel")


class HubModel(GenerativeModel, PyTorchModelHubMixin):
    """A `GenerativeModel` with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    results: the metrics that `evaluate` measured on held-out images, as in config.json; None if not measured.
    history: the rows of metrics.jsonl by stage, one row per validation; None unless `fit` made the model.
    """

    spec: ModelSpec | BaselineSpec
    results: Mapping[str, Any] | None = None
    history: Mapping[str, list[dict[str, Any]]] | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, token: str | bool | None = None, **options: Any
    ) -> Self:
        """Loads a model of this class from any source that `npdraw_dist.load` reads, in eval mode on the CPU.

        token, options: arguments of `huggingface_hub.snapshot_download`, ignored for a folder or a URI.
        `HubModel.from_pretrained` loads a model of any kind. Raises UserError if there is no model, or one of
        another class.
        """
        label = str(pretrained_model_name_or_path)
        model: Any = load_from(model_folder(label, token=token, **options), label)
        if not isinstance(model, cls):
            found = type(model)
            raise UserError(
                f"{label} holds a model of kind {model.title}, not {cls.title}; open it with "
                f"{found.__module__}.{found.__qualname__}.from_pretrained({label!r})"
            )
        return model

    def save_pretrained(  # type: ignore[override]  # huggingface_hub's method has more arguments
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype | None = None,
        config: dict[str, Any] | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> str | None:
        """Writes config.json, model.safetensors and, unless the folder has one, the model card README.md.

        An older model in the folder stays intact until the new one is complete. dtype: that of the weights in
        the file, which are float32 again once loaded. config: replaces the content of config.json.
        model_card_kwargs: `samples`, the number of samples drawn for the card (0 by default), and `repo_id`.
        others: passed on to huggingface_hub. Raises UserError if save_directory is a URI.
        """
        if "://" in str(save_directory):
            raise UserError(f"{save_directory} is a URI; save to a folder, and copy that")
        card = dict(model_card_kwargs or {})
        folder = Path(save_directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if config is None:
            config = {"spec": self.spec.model_dump(mode="json")}
            config["made_by"] = {"package": "npdraw_dist", **stamp()}
            if self.results is not None:
                config["results"] = dict(self.results)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as made:
            if (folder / CARD).exists():
                shutil.copy(folder / CARD, made)
            if count := card.get("samples", 0):
                sheet = png(tiled(self.sample(count, seed=0), COLUMNS), ENLARGED)
                Path(made, SAMPLES_FILE).write_bytes(sheet)
            repo_id = others.pop("repo_id", None) or folder.name  # the same default as in huggingface_hub
            done = super().save_pretrained(
                made, config=config, model_card_kwargs=card, repo_id=repo_id, **others
            )
            if dtype is not None:
                weights = load_file(Path(made, WEIGHTS))
                rounded = {n: w.to(dtype) if w.is_floating_point() else w for n, w in weights.items()}
                save_file(rounded, Path(made, WEIGHTS), {"format": "pt"})
            for file in sorted(Path(made).iterdir(), key=lambda file: file.name == CONFIG):
                file.replace(folder / file.name)
        return done

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **others: Any
    ) -> str:
        """Uploads the model and 64 samples to `org/name` on the hub; returns the commit's URL."""
        card = {"samples": SAMPLES, "repo_id": repo_id, **(model_card_kwargs or {})}
        return str(super().push_to_hub(repo_id, model_card_kwargs=card, **others))

    def generate_model_card(self, *_: Any, **card: Any) -> ModelCard:
        """Fills in the template card.md. card: the argument `model_card_kwargs` of `save_pretrained`."""
        spec, results, rows = self.spec, self.results, {}
        if results is not None and {"n", "split", "k"} <= results.keys():
            rows = {
                name: f"{value:,.4f} {METRICS[name.removesuffix('_se')].unit}".rstrip()
                for name, value in results.items()
                if name not in PROTOCOL and isinstance(value, int | float)
            }
        data = ModelCardData(
            library_name="npdraw_dist",
            license="apache-2.0",
            pipeline_tag="unconditional-image-generation",
            tags=["image-generation", "np-draw", "model_hub_mixin"],
        )
        made: ModelCard = ModelCard.from_template(
            data,
            template_path=str(Path(__file__).with_name("card.md")),
            spec=spec,
            title=self.title,
            module=type(self).__module__,
            name=type(self).__qualname__,
            of_parts=isinstance(spec, ModelSpec),
            parameters=sum(parameter.numel() for parameter in self.parameters()),
            results=results,
            rows=rows,
            where=json.dumps(card.get("repo_id") or "path/of/this/folder"),
            samples=bool(card.get("samples")),
            version=__version__,
        )
        return made


def class_of(spec: Spec, base: type[Model]) -> type[Model]:
    """The class of the model that `spec` describes. Raises UserError unless it is a subclass of `base`."""
    found: type = KINDS[spec.kind]
    if not issubclass(found, base):
        raise UserError(f"the kind {spec.kind} is a {found.__name__}, which is no {base.__name__}")
    return found


def make_model(spec: ModelSpec | BaselineSpec) -> HubModel:
    """Makes an untrained model."""
    return class_of(spec, HubModel)(spec)  # type: ignore[type-abstract]  # a concrete subclass


def load_from(folder: str, label: str) -> HubModel:
    """Loads the model in a folder or URI that `model_folder` found. label: its name in error messages."""
    config = read_config(folder, label)
    spec = spec_in(config, label)
    with readable(label), local_folder(folder) as local, torch.random.fork_rng(devices=[]):
        model = make_model(spec)
        load_model(model, Path(local, WEIGHTS))
    model.results = config.get("results")
    return model.eval()


@contextlib.contextmanager
def local_folder(folder: str) -> Iterator[str]:
    """Yields the local folder, or a temporary local copy if `folder` is a URI."""
    if "://" not in folder:
        yield str(Path(folder).expanduser())
        return
    from npdraw_dist.system.storage import local_copy, open_filesystem

    with local_copy(*open_filesystem(folder)) as local:
        yield str(local)


def read_config(folder: str, label: str) -> dict[str, Any]:
    """Reads config.json in a model folder or URI. label: the model's name in error messages."""
    with readable(label):
        if "://" in folder:
            from npdraw_dist.system.storage import open_filesystem, read_bytes

            content = read_bytes(*open_filesystem(f"{folder}/{CONFIG}"))
        else:
            content = Path(folder, CONFIG).expanduser().read_bytes()
        config = json.loads(content)
    return config if isinstance(config, dict) else {}


def read_spec(folder: str, label: str) -> ModelSpec | BaselineSpec:
    """Reads the spec in config.json of a model folder or URI. label: the model's name in error messages."""
    return spec_in(read_config(folder, label), label)


def spec_in(config: Mapping[str, Any], label: str) -> ModelSpec | BaselineSpec:
    """Returns the spec in a config.json, validated. label: the model's name in error messages."""
    spec, made_by = config.get("spec"), config.get("made_by")
    if not isinstance(spec, dict):
        raise UserError(f"{label} holds another kind of model: its {CONFIG} has no spec")
    if isinstance(made_by, dict):
        version_of(made_by, label)
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{label} holds a model of kind {kind!r} (known: {', '.join(KINDS)})")
    with readable(label):
        return spec_type(kind).model_validate(spec)


@contextlib.contextmanager
def readable(label: str) -> Iterator[None]:
    """Converts errors of a damaged model folder into a UserError. label: the model's name in its message."""
    try:
        yield
    except UserError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{CONFIG}, {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{label} is damaged or of another version: {reason}") from None
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{label} is damaged or of another version: {first_fact(error)}") from None
