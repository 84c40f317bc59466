"""Models as folders and on the Hugging Face hub: what their files state, and their card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.registry import load as load_code
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.core.any_image import tiled, to_pil
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.made_by import stamp
from npdraw_dist.core.model_files import model_folder
from npdraw_dist.nn.card import SAMPLES_FILE, card_text
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.loading import local_folder, quiet, read_config, read_spec, readable

SAMPLES, COLUMNS, ENLARGED = 64, 8, 3  # on the picture of a card


class HubModel(GenerativeModel, PyTorchModelHubMixin):
    """A `GenerativeModel` that `save_pretrained`, `from_pretrained` and `push_to_hub` know.

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
        of_hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        folder = model_folder(said, said, **of_hub)
        kind = KINDS[read_spec(folder, said).kind]
        if load_code(kind.code) is not cls:
            raise UserError(f"{said} holds a model of kind {kind.title}; take npdraw_dist.load({said!r})")
        return cls.opened(folder, said, **model_kwargs)

    @classmethod
    def opened(cls, folder: str, said: str, **model_kwargs: Any) -> Self:
        """The model of this class in a folder or URI. Raises UserError, with the name `said`."""
        with readable(said), quiet(), local_folder(folder) as local:
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

        model_card_kwargs: `samples`, how many are drawn for the card, 0 by default; `repo_id`. others: of
        huggingface_hub, such as push_to_hub.
        """
        of_card = dict(model_card_kwargs or {})
        folder = Path(save_directory)
        if count := of_card.get("samples", 0):
            folder.mkdir(parents=True, exist_ok=True)
            self._save_samples(folder / SAMPLES_FILE, count)
        config = config or config_of(self.spec, self.results)
        return super().save_pretrained(folder, config=config, model_card_kwargs=of_card, **others)

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **others: Any
    ) -> str:
        """Uploads the model, with samples on its card, to `org/name` on the hub; returns the commit's URL.

        others: of huggingface_hub, such as private, token, branch and commit_message.
        """
        of_card = {"samples": SAMPLES, "repo_id": repo_id, **(model_card_kwargs or {})}
        return str(super().push_to_hub(repo_id, model_card_kwargs=of_card, **others))

    def generate_model_card(self, *_: Any, **of_card: Any) -> ModelCard:
        """The card; see `card_text`."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        shown = bool(of_card.get("samples", 0))
        return ModelCard(card_text(self.spec, parameters, self.results, of_card.get("repo_id"), shown))

    def _save_samples(self, path: Path, count: int) -> None:
        (sheet,) = to_pil(tiled(self.sample(count, seed=0), COLUMNS))
        sheet.resize((ENLARGED * sheet.width, ENLARGED * sheet.height), 0).save(path, optimize=True)


def config_of(spec: ModelSpec | BaselineSpec, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json states: the network and its data, who wrote it, and its numbers.

    results: `split`, `n` images of it, `k` importance samples, the numbers by their names in `evaluate`, and
    `protocol` in words.
    """
    config = {"spec": spec.model_dump(mode="json"), "made_by": {"package": "npdraw_dist", **stamp()}}
    return config if results is None else {**config, "results": dict(results)}
