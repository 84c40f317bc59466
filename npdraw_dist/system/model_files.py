"""Finds the files of a trained model in a folder, in a run, at a URI, or on the Hugging Face hub.

`system.storage` is imported only for a URI, so that a local folder and a hub id do not need pyarrow.
"""

import re
from pathlib import Path
from typing import Any

from npdraw_dist.system.errors import UserError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL = "model"  # the model's folder inside the folder of a run
ZOO = Path(__file__).parents[1] / "zoo"  # models that come with the package
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")


def model_folder(where: str | Path, said: str | None = None, **options: Any) -> str:
    """Returns the folder or URI with the config.json of a model. A model on the hub is downloaded first.

    where: a model folder, the folder of a run, the URI of either, a name of `zoo_names`, or an id of the hub.
    said: the name of the model in messages. options: passed to `huggingface_hub.snapshot_download`. Raises
    UserError if there is no model.
    """
    text = str(where)
    said = said or text
    if not text:
        raise UserError("a path or URI is empty; is a variable unset?")
    if text.startswith("hf://"):
        return _download(text.removeprefix("hf://"), said, options)
    base = text.rstrip("/")
    for folder in (base or "/", f"{base}/{MODEL}"):
        if _has(f"{folder}/{CONFIG}"):
            return folder
    if _has(f"{base}/config.yaml"):
        raise UserError(f"{said} is a run that has no model yet; repeat its command to finish it")
    if text in zoo_names():
        return str(ZOO / text)
    head = Path(*Path(text).parts[:1])  # the first component; "." if there is none, as in "./"
    if HUB_ID.fullmatch(text) and str(head) not in (".", "..") and not head.exists():
        return _download(text, said, options)
    raise UserError(
        f"{said} is not a model folder (no {CONFIG}); give a run's folder, a URI, an id of the hub, "
        f"org/name, or a model that comes with the package: {', '.join(zoo_names())}"
    )


def zoo_names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{CONFIG}"))


def _has(file: str) -> bool:
    if "://" not in file:
        return Path(file).expanduser().is_file()
    from npdraw_dist.system.storage import is_file, open_filesystem

    return is_file(*open_filesystem(file))


def _download(text: str, said: str, options: dict[str, Any]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    found = HUB_ID.fullmatch(text)
    if found is None:
        raise UserError(f"{said} is not an id of the hub; write org/name or org/name@revision")
    given = options.pop("revision", None)
    options |= {"revision": found["revision"] or given, "allow_patterns": [CARD, CONFIG, WEIGHTS]}
    try:
        return str(snapshot_download(found["id"], **options))
    except RepositoryNotFoundError:
        reason = "it has no such model, or shows it only with another token"
    except RevisionNotFoundError:
        reason = f"it has no revision {options['revision']} of this model"
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = first_fact(error)
    raise UserError(f"{said} is not a local folder, and cannot be read from the hub: {reason}")


def first_fact(error: Exception) -> str:
    """The first line of an error's text, or the second if the first ends with a colon, as torch's do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0]
