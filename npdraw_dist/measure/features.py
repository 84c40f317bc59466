"""What turns images into feature vectors, of which distances between sets of images are taken.

Shapes: N images, C channels, H x W pixels, D features.
"""

import contextlib
import importlib
import io
import json
import tempfile
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from npdraw_dist.core.errors import UserError

INCEPTION_SIZES = (64, 192, 768, 2048)
FACTS = "facts.json"  # of a TorchScript file that our own command wrote


class Extract(Protocol):
    """Float images (N, C, H, W) in [0, 1] -> features (N, D)."""

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ExtractorFile:
    """Where features come from, small enough to send to workers that open it there.

    kind: Inception weights (torch-fidelity's port of the original), a TorchScript file, or the name of an
    importable module or of a function that makes one. sha256: of `content`, the file.
    """

    kind: Literal["inception", "torchscript", "attribute"]
    name: str
    content: bytes = field(repr=False, default=b"")
    sha256: str | None = None
    dimensions: int | None = None

    @property
    def is_inception(self) -> bool:
        """Whether a Frechet distance of its features is the FID that papers report."""
        return self.kind == "inception" and self.dimensions == INCEPTION_SIZES[-1]

    @property
    def resize(self) -> str:
        """What happens to an image before it is seen."""
        if self.kind == "inception":
            return "299x299 bilinear as TensorFlow 1 has it, grey to three equal channels"
        return "none"

    def open(self, device: torch.device) -> Extract:
        """Raises UserError in one line where it cannot be opened."""
        try:
            module = OPENERS[self.kind](self)
        except UserError:
            raise
        except Exception as error:  # a user's file or code raises anything
            reason = str(error).strip().splitlines()[:1]
            text = f"{type(error).__name__}: {''.join(reason)}"
            raise UserError(f"the extractor {self.name} cannot be opened ({text})") from None
        module = module.to(device).eval()
        prepare = _for_inception if self.kind == "inception" else _as_is

        def extract(images: Tensor) -> Tensor:
            return _checked(module, prepare(images.to(device)), self.name)

        return extract


def facts_of(content: bytes) -> dict[str, Any]:
    """What our own command wrote into a TorchScript file, {} for any other. Raises UserError on no file."""
    extra = {FACTS: ""}
    try:
        torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)
    except Exception as error:  # torch raises several kinds
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"the extractor is no readable TorchScript file ({''.join(reason)})") from None
    return dict(json.loads(extra[FACTS])) if extra[FACTS] else {}


def _inception(file: ExtractorFile) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    # torch-fidelity unpickles the file, so that it must first be known to hold tensors alone.
    torch.load(io.BytesIO(file.content), map_location="cpu", weights_only=True)
    with tempfile.NamedTemporaryFile(suffix=".pth") as copy:
        copy.write(file.content)
        copy.flush()
        with contextlib.redirect_stdout(io.StringIO()):
            return NoTrainInceptionV3(
                name="inception-v3-compat",
                features_list=[str(file.dimensions)],
                feature_extractor_weights_path=copy.name,
                antialias=False,
            )


def _torchscript(file: ExtractorFile) -> nn.Module:
    module: nn.Module = torch.jit.load(io.BytesIO(file.content), map_location="cpu")
    return module


def _attribute(file: ExtractorFile) -> nn.Module:
    name, _, attribute = file.name.partition(":")
    found = getattr(importlib.import_module(name), attribute)
    module = found if isinstance(found, nn.Module) else found()
    if not isinstance(module, nn.Module):
        raise UserError(f"the extractor {file.name} gives a {type(module).__name__}, not an nn.Module")
    return module


OPENERS = {"inception": _inception, "torchscript": _torchscript, "attribute": _attribute}


def _for_inception(images: Tensor) -> Tensor:
    """As uint8 with three channels, which is what the network takes."""
    return (images.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8)


def _as_is(images: Tensor) -> Tensor:
    return images


@torch.no_grad()
def _checked(module: nn.Module, images: Tensor, name: str) -> Tensor:
    """The features (N, D) float32 on the CPU; raises UserError where the module gives anything else."""
    try:
        found = module(images)
    except Exception as error:  # a user's module raises anything
        reason = str(error).strip().splitlines()[-1:]
        text = f"{type(error).__name__}: {''.join(reason)}"
        shape = tuple(images.shape)
        raise UserError(f"the extractor {name} fails on images {shape} in [0, 1] ({text})") from None
    if isinstance(found, tuple | list) and len(found) == 1:
        found = found[0]
    wanted = f"({len(images)}, D) floating for {len(images)} images"
    if not isinstance(found, Tensor):
        raise UserError(f"the extractor {name} gives a {type(found).__name__}; wanted a tensor {wanted}")
    if found.ndim != 2 or len(found) != len(images) or not found.is_floating_point():
        raise UserError(f"the extractor {name} gives {tuple(found.shape)} {found.dtype}; wanted {wanted}")
    if not torch.isfinite(found).all():
        raise UserError(f"the extractor {name} gives NaN or infinite features")
    return found.float().cpu()
