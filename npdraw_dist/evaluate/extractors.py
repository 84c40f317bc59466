"""From the flags of `evaluate` to the feature extractor that its actors open."""

import hashlib
from dataclasses import replace

import torch

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.features import ExtractorFile, facts_of


def find_extractor(settings: EvaluationSettings, shape: tuple[int, int, int]) -> ExtractorFile | None:
    """The extractor of --fid-weights or --extractor, tried on images of `shape`; None if neither is given.

    Raises UserError in one line.
    """
    weights, extractor = settings.fid_weights, settings.extractor
    if weights is not None and extractor is not None:
        raise UserError("--fid-weights and --extractor both name an extractor; give one")
    if weights is not None:
        content, digest = _read(weights, "--fid-weights")
        file = ExtractorFile("inception", "inception-v3-compat", content, digest, settings.fid_features)
    elif extractor is None:
        return None
    elif ":" in extractor and "://" not in extractor and not extractor.endswith(".pt"):
        file = ExtractorFile("attribute", extractor)
    else:
        content, digest = _read(extractor, "--extractor")
        name = facts_of(content).get("name") or extractor.rpartition("/")[2]
        file = ExtractorFile("torchscript", name, content, digest)
    found = file.open(torch.device("cpu"))(torch.zeros(2, *shape))
    return replace(file, dimensions=found.shape[1])


def _read(path: str, flag: str) -> tuple[bytes, str]:
    """A file and its SHA-256."""
    try:
        content = read_bytes(*open_filesystem(path))
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be read: {error}") from None
    return content, hashlib.sha256(content).hexdigest()
