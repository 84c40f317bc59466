"""Models made from a spec, saved as folders, and loaded from a folder, a run, a URI or the Hugging Face hub.

A local folder and a hub id need no library of the training: `core.storage` is imported for a URI alone.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from pydantic import ValidationError
from safetensors import SafetensorError

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.registry import load as load_code
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, spec_type
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import png, tiled
from npdraw_dist.core.made_by import stamp, version_of
from npdraw_dist.core.model_files import CONFIG, first_fact, model_folder
from npdraw_dist.nn.card import SAMPLES_FILE, card_text
from npdraw_dist.nn.generative import GenerativeModel

SAMPLES, COLUMNS, ENLARGED = 64, 8, 3  # on the picture of a card


class HubModel(GenerativeModel, PyTorchModelHubMixin):
    """A `GenerativeModel` with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    results: its numbers on held-out images and how they were measured (`config_of`); None if not known.
    """

    spec: ModelSpec | BaselineSpec
    results: Mapping[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """The model of this class at what `npdraw_dist.load` takes, in eval mode on the CPU.

        The other arguments are those of huggingface_hub. Raises UserError if there is none, or if it is of
        another kind.
        """
        said = str(pretrained_model_name_or_path)
        folder = model_folder(
            said,
            said,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        kind = read_spec(folder, said).kind
        if model_class(kind) is not cls:
            title = KINDS[kind].title
            raise UserError(f"{said} holds a model of kind {title}; take npdraw_dist.load({said!r})")
        return cls.opened(folder, said, **model_kwargs)

    @classmethod
    def opened(cls, folder: str, said: str, **model_kwargs: Any) -> Self:
        """The model of this class in a folder or URI. Raises UserError, with the name `said`."""
        hidden = contextlib.redirect_stdout(io.StringIO())  # huggingface_hub prints where it loads from
        with readable(said), hidden, local_folder(folder) as local:
            model = super().from_pretrained(local, **model_kwargs)
        model.results = read_config(folder, said).get("results")
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

        model_card_kwargs: `samples`, how many are drawn for the card, 0 by default; `repo_id`. others: the
        arguments of huggingface_hub, such as push_to_hub.
        """
        card = dict(model_card_kwargs or {})
        folder = Path(save_directory)
        if count := card.get("samples", 0):
            folder.mkdir(parents=True, exist_ok=True)
            sheet = png(tiled(self.sample(count, seed=0), COLUMNS), ENLARGED)
            (folder / SAMPLES_FILE).write_bytes(sheet)
        config = config or config_of(self.spec, self.results)
        return super().save_pretrained(folder, config=config, model_card_kwargs=card, **others)

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **others: Any
    ) -> str:
        """Uploads the model, with samples on its card, to `org/name` on the hub; returns the commit's URL.

        others: the arguments of huggingface_hub, such as private, token, branch and commit_message.
        """
        card = {"samples": SAMPLES, "repo_id": repo_id, **(model_card_kwargs or {})}
        return str(super().push_to_hub(repo_id, model_card_kwargs=card, **others))

    def generate_model_card(self, *_: Any, **card: Any) -> ModelCard:
        """The card; see `card_text`."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        shown = bool(card.get("samples", 0))
        return ModelCard(card_text(self.spec, parameters, self.results, card.get("repo_id"), shown))


def config_of(spec: ModelSpec | BaselineSpec, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json states: the network and its data, who wrote it, and its numbers.

    results: `split`, `n` (images), `k` (importance samples), the numbers by their names in `evaluate`, and
    `protocol` in words.
    """
    config = {"spec": spec.model_dump(mode="json"), "made_by": {"package": "npdraw_dist", **stamp()}}
    return config if results is None else {**config, "results": dict(results)}


def model_class(kind: str) -> type[HubModel]:
    """The class of a registered kind."""
    found: type[HubModel] = load_code(KINDS[kind].code)
    return found


def make_model(spec: ModelSpec | BaselineSpec) -> HubModel:
    """An untrained model."""
    return model_class(spec.kind)(spec)


def load(where: str | Path) -> HubModel:
    """The trained model of any kind at `where`, in eval mode on the CPU.

    where: a model folder, the folder of a run, the URI of either (s3://, gs://, ...), or an id of the hub,
    `org/name` or `org/name@revision`. Raises UserError if there is no model that this version can read.
    """
    return load_from(model_folder(where), str(where))


def load_from(folder: str, said: str) -> HubModel:
    """The model in a folder or URI that `model_folder` found. Raises UserError, with the name `said`."""
    return model_class(read_spec(folder, said).kind).opened(folder, said, strict=True)


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
    config = read_config(folder, said)
    spec, made_by = config.get("spec"), config.get("made_by")
    if not isinstance(spec, dict):
        raise UserError(f"{said} holds another kind of model: its {CONFIG} has no spec")
    if isinstance(made_by, dict):
        version_of(made_by, said)
    kind = spec.get("kind")
    if kind not in KINDS:
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
    except (SafetensorError, ValidationError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{said} is damaged or of another version: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The first fact of an error."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{CONFIG}, {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return first_fact(error)
