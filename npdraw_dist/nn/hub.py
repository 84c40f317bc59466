"""Models made from a spec, saved as folders, and loaded from a folder, a run, a URI or the Hugging Face hub.

A local folder and a hub id need no library of the training: `core.storage` is imported for a URI alone.
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
from safetensors.torch import load_model

from npdraw_dist import __version__
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, Spec, spec_type
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import png, tiled
from npdraw_dist.core.made_by import stamp, version_of
from npdraw_dist.core.model_files import CARD, CONFIG, WEIGHTS, first_fact, model_folder
from npdraw_dist.measure.metrics import METRICS
from npdraw_dist.nn.generative import GenerativeModel

SAMPLES_FILE = "samples.png"
# Keys of the results that are not rows of the table.
PROTOCOL = ("split", "n", "k", "protocol")
SAMPLES, COLUMNS, ENLARGED = 64, 8, 3  # on the picture of a card


Model = TypeVar("Model", bound="HubModel")


class HubModel(GenerativeModel, PyTorchModelHubMixin):
    """A `GenerativeModel` with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    results: its numbers on held-out images and how they were measured (`config_of`); None if not known.
    history: of a model that `fit` returns, the rows of metrics.jsonl by stage, one for each validation.
    """

    spec: ModelSpec | BaselineSpec
    results: Mapping[str, Any] | None = None
    history: Mapping[str, list[dict[str, Any]]] | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, token: str | bool | None = None, **options: Any
    ) -> Self:
        """The model of this class at what `npdraw_dist.load` takes, in eval mode on the CPU.

        token, options: of `huggingface_hub.snapshot_download`; they do nothing for a folder or a URI. Raises
        UserError if there is no model, or one of another kind.
        """
        said = str(pretrained_model_name_or_path)
        model: Any = load_from(model_folder(said, token=token, **options), said)
        if not isinstance(model, cls):
            raise UserError(f"{said} holds a model of kind {model.title}; take npdraw_dist.load({said!r})")
        return model

    def save_pretrained(  # type: ignore[override]  # huggingface_hub's has more arguments, which it passes on
        self,
        save_directory: str | Path,
        *,
        config: dict[str, Any] | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> str | None:
        """Writes config.json, model.safetensors and, unless there is one, the card README.md.

        save_directory: a folder; a model that is there stays whole until this one is written. Raises
        UserError if it is a URI. model_card_kwargs: `samples`, how many are drawn for the card (0), and
        `repo_id`. others: huggingface_hub's.
        """
        if "://" in str(save_directory):
            raise UserError(f"{save_directory} is a URI; save to a folder, and copy that")
        card = dict(model_card_kwargs or {})
        folder = Path(save_directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        config = config or config_of(self.spec, self.results)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as made:
            if (folder / CARD).exists():
                shutil.copy(folder / CARD, made)
            if count := card.get("samples", 0):
                sheet = png(tiled(self.sample(count, seed=0), COLUMNS), ENLARGED)
                Path(made, SAMPLES_FILE).write_bytes(sheet)
            repo_id = others.pop("repo_id", None) or folder.name  # huggingface_hub's default
            done = super().save_pretrained(
                made, config=config, model_card_kwargs=card, repo_id=repo_id, **others
            )
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
        """The card; see `card_of`."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        shown = bool(card.get("samples", 0))
        return card_of(self.spec, parameters, self.results, card.get("repo_id"), shown)


def config_of(spec: ModelSpec | BaselineSpec, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json states: the network, its data, who wrote it, and `results` of `evaluate`."""
    config = {"spec": spec.model_dump(mode="json"), "made_by": {"package": "npdraw_dist", **stamp()}}
    return config if results is None else {**config, "results": dict(results)}


def class_of(spec: Spec, base: type[Model]) -> type[Model]:
    """The class of models of this spec. Raises UserError unless it is a subclass of `base`."""
    found: type = KINDS[spec.kind]
    if not issubclass(found, base):
        raise UserError(f"the kind {spec.kind} is a {found.__name__}, which is no {base.__name__}")
    return found


def make_model(spec: ModelSpec | BaselineSpec) -> HubModel:
    """An untrained model."""
    return class_of(spec, HubModel)(spec)  # type: ignore[type-abstract]  # a subclass of it


def load(where: str | Path) -> HubModel:
    """The trained model of any kind at `where`, in eval mode on the CPU.

    where: a model folder, a run's, the URI of either (s3://, gs://, ...), the name of a model that comes with
    the package, such as `emoji` (`npdraw models`), or an id of the hub, `org/name` or `org/name@revision`.
    Raises UserError if there is no model that this version can read.
    """
    return load_from(model_folder(where), str(where))


def load_from(folder: str, said: str) -> HubModel:
    """The model in a folder or URI that `model_folder` found. Raises UserError, with the name `said`."""
    config = read_config(folder, said)
    spec = spec_in(config, said)
    with readable(said), local_folder(folder) as local, torch.random.fork_rng(devices=[]):
        model = make_model(spec)
        load_model(model, Path(local, WEIGHTS))
    model.results = config.get("results")
    return model.eval()


@contextlib.contextmanager
def local_folder(folder: str) -> Iterator[str]:
    """A folder, or a temporary copy of a URI."""
    if "://" not in folder:
        yield str(Path(folder).expanduser())
        return
    from npdraw_dist.core.storage import local_copy, open_filesystem

    with local_copy(*open_filesystem(folder)) as local:
        yield str(local)


def read_config(folder: str, said: str) -> dict[str, Any]:
    """config.json of a model folder or URI. Raises UserError, with the name `said`."""
    with readable(said):
        if "://" in folder:
            from npdraw_dist.core.storage import open_filesystem, read_bytes

            content = read_bytes(*open_filesystem(f"{folder}/{CONFIG}"))
        else:
            content = Path(folder, CONFIG).expanduser().read_bytes()
        config = json.loads(content)
    return config if isinstance(config, dict) else {}


def read_spec(folder: str, said: str) -> ModelSpec | BaselineSpec:
    """The spec in config.json of a model folder or URI. Raises UserError, with the name `said`."""
    return spec_in(read_config(folder, said), said)


def spec_in(config: Mapping[str, Any], said: str) -> ModelSpec | BaselineSpec:
    spec, made_by = config.get("spec"), config.get("made_by")
    if not isinstance(spec, dict):
        raise UserError(f"{said} holds another kind of model: its {CONFIG} has no spec")
    if isinstance(made_by, dict):
        version_of(made_by, said)
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{said} holds a model of kind {kind!r} (known: {', '.join(KINDS)})")
    with readable(said):
        return spec_type(kind).model_validate(spec)


@contextlib.contextmanager
def readable(said: str) -> Iterator[None]:
    """Turns the errors of a damaged model folder into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{CONFIG}, {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{said} is damaged or of another version: {reason}") from None
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{said} is damaged or of another version: {first_fact(error)}") from None


def card_of(
    spec: ModelSpec | BaselineSpec,
    parameters: int,
    results: Mapping[str, Any] | None,
    repo_id: str | None,
    samples: bool,
) -> ModelCard:
    """The card from the template card.md. results: as `config_of` has them. samples: shows SAMPLES_FILE."""
    rows = {}
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
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md")),
        spec=spec,
        title=KINDS[spec.kind].title,
        of_parts=isinstance(spec, ModelSpec),
        parameters=parameters,
        results=results,
        rows=rows,
        where=json.dumps(repo_id or "path/of/this/folder"),
        samples=samples,
        version=__version__,
    )
    return card
