"""Feature extractors, which turn images into vectors, for distances between sets of images.

Shapes: N images, C channels, H x W pixels, D features.
"""

import contextlib
import hashlib
import importlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, read_bytes

INCEPTION_FEATURES = 2048  # number of features from which papers compute the FID
FACTS = "facts.json"  # the file with facts that `npdraw train-extractor` puts inside its TorchScript file

Extract = Callable[[Tensor], Tensor]  # float images (N, C, H, W) in [0, 1] -> features (N, D)


@dataclass(frozen=True)
class ExtractorFile:
    """An extractor that is not loaded yet, so that it can be sent to workers.

    kind: Inception weights (torch-fidelity's port of the original), a TorchScript file, or a Python attribute
    `module:name` that is an nn.Module or returns one. content, sha256: the bytes of the file and their
    digest. dimensions: D; 0 before `find_extractor` has run the extractor.
    """

    kind: Literal["inception", "torchscript", "attribute"]
    name: str
    content: bytes = field(repr=False, default=b"")
    sha256: str | None = None
    dimensions: int = 0

    @property
    def is_inception(self) -> bool:
        """Whether the Frechet distance of its features is the FID that papers report."""
        return self.kind == "inception" and self.dimensions == INCEPTION_FEATURES

    @property
    def resize(self) -> str:
        """How the extractor resizes images."""
        inception = "299x299 bilinear as TensorFlow 1 has it, grey to three equal channels"
        return inception if self.kind == "inception" else "none"

    def open(self, device: torch.device) -> Extract:
        """Loads the extractor to `device`. Raises UserError with a one-line message if this fails."""
        try:
            module = self._load().to(device).eval()
        except UserError:
            raise
        except Exception as error:  # a user's file or code may raise any error
            raise UserError(f"the extractor {self.name} cannot be opened ({_reason(error)})") from None

        @torch.no_grad()
        def extract(images: Tensor) -> Tensor:
            images = images.to(device)
            if self.kind == "inception":  # the network takes uint8 with three channels
                images = (images.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8)
            try:
                found = module(images)
            except Exception as error:  # a user's module may raise any error
                shape, reason = tuple(images.shape), _reason(error, -1)
                text = f"the extractor {self.name} fails on images {shape} in [0, 1] ({reason})"
                raise UserError(text) from None
            return self._checked(found, len(images))

        return extract

    def _load(self) -> nn.Module:
        if self.kind == "torchscript":
            return torch.jit.load(io.BytesIO(self.content), map_location="cpu")
        return _inception(self) if self.kind == "inception" else _attribute(self.name)

    def _checked(self, found: Any, count: int) -> Tensor:
        """A module's output as float32 on the CPU. Raises UserError unless it is (N, D) and finite."""
        if isinstance(found, tuple | list) and len(found) == 1:
            found = found[0]
        tensor = isinstance(found, Tensor)
        if not tensor or found.ndim != 2 or len(found) != count or not found.is_floating_point():
            given = f"{tuple(found.shape)} {found.dtype}" if tensor else f"a {type(found).__name__}"
            wanted = f"({count}, D) floating for {count} images"
            raise UserError(f"the extractor {self.name} gives {given}; it must give {wanted}")
        if not torch.isfinite(found).all():
            raise UserError(f"the extractor {self.name} gives NaN or infinite features")
        return found.float().cpu()


def find_extractor(
    weights: str | None, extractor: str | None, shape: tuple[int, int, int]
) -> ExtractorFile | None:
    """The extractor that --fid-weights or --extractor names; None if neither is given.

    Raises UserError if the extractor cannot be opened, or fails on images of `shape` (C, H, W).
    """
    if weights is not None and extractor is not None:
        raise UserError("--fid-weights and --extractor both name an extractor; give one")
    path, flag = (weights, "--fid-weights") if extractor is None else (extractor, "--extractor")
    if path is None:
        return None
    if path == extractor and ":" in path and "://" not in path and not path.endswith(".pt"):
        file = ExtractorFile("attribute", path)
    else:
        try:
            content = read_bytes(*open_filesystem(path))
        except OSError as error:
            raise UserError(f"{flag} {path} cannot be read: {error}") from None
        digest = hashlib.sha256(content).hexdigest()
        if path == weights:
            file = ExtractorFile("inception", "inception-v3-compat", content, digest, INCEPTION_FEATURES)
        else:
            name = facts_of(content).get("name") or path.rpartition("/")[2]
            file = ExtractorFile("torchscript", name, content, digest)
    found = file.open(torch.device("cpu"))(torch.zeros(2, *shape))
    return replace(file, dimensions=found.shape[1])


def facts_of(content: bytes) -> dict[str, Any]:
    """The facts that `npdraw train-extractor` put into a TorchScript file; {} for other TorchScript files.

    Raises UserError if `content` is no TorchScript file.
    """
    extra = {FACTS: ""}
    try:
        torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)
    except Exception as error:  # torch raises errors of several types
        raise UserError(f"the extractor is no readable TorchScript file ({_reason(error)})") from None
    return dict(json.loads(extra[FACTS])) if extra[FACTS] else {}


def _inception(file: ExtractorFile) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    # torch-fidelity unpickles the file, which can run code, so this load first refuses all but tensors.
    torch.load(io.BytesIO(file.content), map_location="cpu", weights_only=True)
    with tempfile.NamedTemporaryFile(suffix=".pth") as copy, contextlib.redirect_stdout(io.StringIO()):
        copy.write(file.content)
        copy.flush()
        names = [str(file.dimensions)]
        return NoTrainInceptionV3("inception-v3-compat", names, copy.name, antialias=False)


def _attribute(name: str) -> nn.Module:
    """The nn.Module that an attribute such as `package.file:attribute` is or returns."""
    package, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(package), attribute)
    module = found if isinstance(found, nn.Module) else found()
    if not isinstance(module, nn.Module):
        raise UserError(f"the extractor {name} gives a {type(module).__name__}, not an nn.Module")
    return module


def _reason(error: Exception, line: int = 0) -> str:
    """The type of an error and one line of its message. line: 0 is the first line, -1 the last."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[line]}"
