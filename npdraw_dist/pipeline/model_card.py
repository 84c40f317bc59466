"""The numbers of a trained model in its own folder: in config.json, and on its card README.md."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from pyarrow import fs

from npdraw_dist.config.spec import spec_type
from npdraw_dist.core.model_files import CONFIG
from npdraw_dist.core.storage import open_filesystem, read_bytes, write_text
from npdraw_dist.nn.card import SAMPLES_FILE, card_text

CARD = "README.md"
# Numbers that a model folder states, of one split: how many images and importance samples, the bounds.
MEASURED = ("n", "k", "nll_iwae", "nll_iwae_se", "elbo", "elbo_se", "bits_per_dim")
DISTANCES = ("frechet_distance", "kernel_distance", "precision", "recall")


def write_results(
    filesystem: fs.FileSystem, folder: str, results: Mapping[str, Any], parameters: int
) -> None:
    """Writes config.json and the card of the model in `folder` with these numbers.

    results: as `nn.hub.config_of` says. parameters: how many the model has. The card comes first: as long as
    config.json lacks the numbers, they are not published.
    """
    config = json.loads(read_bytes(filesystem, f"{folder}/{CONFIG}"))
    spec = spec_type(config["spec"]["kind"]).model_validate(config["spec"])
    shown = filesystem.get_file_info(f"{folder}/{SAMPLES_FILE}").type == fs.FileType.File
    card = card_text(spec, parameters, results, None, samples=shown)
    stated = {**config, "results": dict(results)}
    write_text(filesystem, f"{folder}/{CARD}", card)
    write_text(filesystem, f"{folder}/{CONFIG}", json.dumps(stated, indent=2) + "\n")


def publish(model: str, evaluation: Mapping[str, Any]) -> str | None:
    """Takes the result of `evaluate` over into the folder or URI `model`; returns the path of its card.

    None if the numbers stay as they are: the folder is a download of the hub or may only be read, the data
    are not those of the training, or the folder has numbers of the test split and these are of another one,
    or of fewer images.
    """
    if evaluation["protocol"]["data_of_training"] != "same" or _is_download(model):
        return None
    filesystem, folder = open_filesystem(model)
    before = json.loads(read_bytes(filesystem, f"{folder}/{CONFIG}")).get("results") or {}
    weaker = evaluation["split"] != "test", -evaluation["n"]
    if before and weaker > (before.get("split") != "test", -before.get("n", 0)):
        return None
    with contextlib.suppress(OSError):
        write_results(filesystem, folder, _results(evaluation), evaluation["protocol"]["parameters"])
        return f"{model.rstrip('/')}/{CARD}"
    return None


def _is_download(model: str) -> bool:
    """Whether it lies in the cache of the hub, whose files belong to a commit there."""
    return "://" not in model and Path(model).resolve().is_relative_to(Path(HF_HUB_CACHE).resolve())


def _results(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    protocol, made_by = evaluation["protocol"], evaluation["made_by"]
    numbers = {name: evaluation[name] for name in (*MEASURED, *DISTANCES) if name in evaluation}
    told = f"Measured by `npdraw evaluate` {made_by['version']} on {made_by['date'][:10]}"
    told += f", seed {protocol['seed']}"
    distance = protocol["distance"]
    if isinstance(distance, Mapping):
        told += (
            f"; distances of {distance['n_generated']:,} samples to {distance['n_real']:,} images by the "
            f"{distance['features']} features of {distance['extractor']}"
        )
    ids = f"SHA-256 of the ids of the images: `{protocol['ids_sha256']}`"
    return {"split": evaluation["split"], **numbers, "protocol": f"{told}. {ids}."}
