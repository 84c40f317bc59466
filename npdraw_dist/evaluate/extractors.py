"""From the flags of `evaluate` to the extractor that its workers open."""

import hashlib
from dataclasses import replace

import torch

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.measure.features import ExtractorFile, facts_of


def find_extractor(
    weights: str | None, features: int, extractor: str | None, shape: tuple[int, int, int]
) -> ExtractorFile | None:
    """The extractor of --fid-weights or --extractor, tried on two images of `shape`; None for neither.

    weights: a file of Inception weights; features: how many of its features. extractor: a TorchScript file,
    or `module:attribute`. Raises UserError in one line.
    """
    if weights is not None and extractor is not None:
        raise UserError("--fid-weights and --extractor both name an extractor; give one")
    if weights is not None:
        content = _read(weights, "--fid-weights")
        file = ExtractorFile("inception", "inception-v3-compat", content, _sha256(content), features)
    elif extractor is None:
        return None
    elif ":" in extractor and "://" not in extractor and not extractor.endswith(".pt"):
        file = ExtractorFile("attribute", extractor)
    else:
        content = _read(extractor, "--extractor")
        facts = facts_of(content)
        name = facts.get("name") or extractor.rpartition("/")[2]
        file = ExtractorFile("torchscript", name, content, _sha256(content))
    found = file.open(torch.device("cpu"))(torch.zeros(2, *shape))
    return replace(file, dimensions=found.shape[1])


def _read(path: str, flag: str) -> bytes:
    filesystem, place = open_filesystem(path)
    try:
        return read_bytes(filesystem, place)
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be read: {error}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
