"""From where a model lies to the model: a model folder, a run, a URI, or an id of the Hugging Face hub.

A local folder and a hub id need no library of the training: `core.storage` is imported for a URI alone.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.registry import load as load_code
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, spec_type
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.made_by import version_of
from npdraw_dist.core.model_files import CONFIG, first_fact, model_folder

if TYPE_CHECKING:
    from npdraw_dist.nn.hub import HubModel


def load(where: str | Path) -> "HubModel":
    """The trained model of any kind at `where`, in eval mode on the CPU.

    where: a model folder, the folder of a run, the URI of either (s3://, gs://, ...), or an id of the hub,
    `org/name` or `org/name@revision`. Raises UserError if there is no model that this version can read.
    """
    return load_from(model_folder(where), str(where))


def load_from(folder: str, said: str) -> "HubModel":
    """The model in a folder or URI that `model_folder` found. Raises UserError, with the name `said`."""
    kind = read_spec(folder, said).kind
    opened: HubModel = load_code(KINDS[kind].code).opened(folder, said, strict=True)
    return opened


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
    """What the config.json of a model folder or URI states. Raises UserError, with the name `said`."""
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
def quiet() -> Iterator[None]:
    """Without what huggingface_hub prints on where it loads from."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def readable(said: str) -> Iterator[None]:
    """Errors of a damaged model folder as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, ValidationError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{said} is damaged or of another version: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The first fact in the text of an error."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{CONFIG}, {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return first_fact(error)
