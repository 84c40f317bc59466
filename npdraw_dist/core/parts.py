"""The data types that all subpackages exchange: part banks, sequences of steps, and batches for training.

Shapes: B batch, T steps, L places, K parts, C channels, P patch side, H x W image.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from npdraw_dist.core.images import inline, png, tiled
from npdraw_dist.system.errors import UserError

# `PartBank.of` imports this function when called, since `bank` imports this file and needs more libraries.
CLUSTERING = "npdraw_dist.bank.build:bank_of"
SHEET = 400  # least length of the longer side of a bank's picture, px


class _Saved:
    """Base class of dataclasses of tensors that can be saved as a safetensors file."""

    title: ClassVar[str]
    fix: ClassVar[str] = ""

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes the tensors as safetensors, with text metadata."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(self).items()}
        save_file(tensors, path, dict(metadata or {}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote. Raises UserError on any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
                return cls(*map(file.get_tensor, names))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is not a readable {cls.title} ({error}){cls.fix}") from None


@dataclass(frozen=True)
class PartBank(_Saved):
    """A bank of K parts, which are real image patches. It is the codebook of *what*.

    parts: (K, C, P, P) float32 in [0, 1]. Raises ValueError on any other shape or type.
    """

    title: ClassVar[str] = "part bank"
    fix: ClassVar[str] = "; delete it and run the stage `bank` again"
    parts: Tensor

    @classmethod
    def of(
        cls, images: Any, size: int, patch: int, *, background: str = "black", seed: int = 0
    ) -> "PartBank":
        """Clusters patches of images into `size` parts of `patch` x `patch` pixels; see `bank.build.bank_of`.

        images: of any kind (`core.images`), and of the size of the model's canvas, which is smaller than its
        images if `spec.downscale` is above 1. background: "black" or "white", as in the model's grid.
        """
        bank: PartBank = resolve_name(CLUSTERING)(images, size, patch, background, seed)
        return bank

    def joined(self, *others: "PartBank") -> "PartBank":
        """The parts of this bank, then those of the others. Raises UserError if their shapes differ."""
        for bank in others:
            if (shape := tuple(bank.parts.shape[1:])) != tuple(self.parts.shape[1:]):
                raise UserError(f"a bank cannot mix parts of {shape} and of {tuple(self.parts.shape[1:])}")
        return PartBank(torch.cat([bank.parts.to(self.parts.device) for bank in (self, *others)]))

    def __post_init__(self) -> None:
        if self.parts.ndim != 4 or self.parts.shape[2] != self.parts.shape[3] or len(self.parts) == 0:
            raise ValueError(f"a bank must be (K, C, P, P) with K > 0, not {tuple(self.parts.shape)}")
        if self.parts.dtype != torch.float32:
            raise ValueError(f"a bank must be float32, not {self.parts.dtype}")

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def channels(self) -> int:
        return self.parts.shape[1]

    @property
    def patch(self) -> int:
        return self.parts.shape[2]

    def _repr_html_(self) -> str:
        """A picture of all parts in reading order, for notebooks."""
        bank = f"bank of {len(self)} parts, {self.channels} x {self.patch} x {self.patch}"
        return f"<div>{bank}</div>{inline(self._sheet(), SHEET, bank)}"

    def _repr_png_(self) -> bytes:
        """The picture of `_repr_html_` as a PNG, for viewers without HTML."""
        sheet = self._sheet()
        return png(sheet, math.ceil(SHEET / max(sheet.shape)))

    def _sheet(self) -> Tensor:
        columns = math.ceil(math.sqrt(2 * len(self)))
        return tiled(F.pad(self.parts, (0, 1, 0, 1), value=0.5), columns)


def _require_steps(whether: Tensor, where: Tensor, what: Tensor, of: str = "") -> None:
    shape = whether.shape
    if len(shape) != 2 or where.shape != shape or what.shape != shape:
        raise ValueError(
            f"whether, where and what{of} must all be (B, T), not "
            f"{tuple(shape)}, {tuple(where.shape)}, {tuple(what.shape)}"
        )


class _Rows:
    """Base class of dataclasses whose tensors all have the batch as their first axis."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Applies `function` to each tensor."""
        return type(self)(*(function(value) for value in vars(self).values()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def __getitem__(self, index: slice | Tensor) -> Self:
        """Selects rows of the batch by a slice, a mask or indices, all of which keep the batch axis."""
        return self.map(lambda tensor: tensor[index])

    @classmethod
    def cat(cls, batches: "list[Self]") -> Self:
        return cls(*(torch.cat(column) for column in zip(*(vars(b).values() for b in batches), strict=True)))


@dataclass(frozen=True)
class PartSequence(_Rows, _Saved):
    """The latent variable z of NP-DRAW: T steps of whether, where and what (paper section 3).

    whether: (B, T) bool, true where a part is drawn. where: (B, T) int64 in [0, L), its place. what: (B, T)
    int64 in [0, K), the part. where and what are ignored at steps that draw nothing. Raises ValueError on any
    other shape or type.
    """

    title: ClassVar[str] = "drawing"
    whether: Tensor
    where: Tensor
    what: Tensor

    def __post_init__(self) -> None:
        _require_steps(self.whether, self.where, self.what)
        if self.whether.dtype != torch.bool:
            raise ValueError(f"whether must be bool, not {self.whether.dtype}")
        if self.where.dtype != torch.int64 or self.what.dtype != torch.int64:
            raise ValueError(f"where and what must be int64, not {self.where.dtype} and {self.what.dtype}")

    def __len__(self) -> int:
        return len(self.whether)

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return self.whether.shape[1]

    @classmethod
    def empty(cls, batch: int) -> "PartSequence":
        """Sequences without steps, (B, 0)."""
        none = torch.zeros(batch, 0, dtype=torch.int64)
        return cls(none.bool(), none, none)

    def canonical(self) -> "PartSequence":
        """The same drawing, with where and what 0 at every step that draws nothing."""
        return PartSequence(self.whether, self.where * self.whether, self.what * self.whether)


@dataclass(frozen=True)
class Batch(_Rows):
    """Images, their parses z and the conditions of the prior; the input of both training stages.

    images: (B, C, H, W) uint8. whether: (B, T) bool. where, what: (B, T) in the narrow integer type of the
    stored parses, which the property `z` converts to int64. condition: (B, A) int64 tokens, or (B, 0).
    Raises ValueError on other shapes or types.
    """

    images: Tensor
    whether: Tensor
    where: Tensor
    what: Tensor
    condition: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.condition.shape[1:] == (0,):  # no condition is given
            none = torch.zeros(len(self.images), 0, dtype=torch.int64, device=self.images.device)
            object.__setattr__(self, "condition", none)
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"a batch needs uint8 images (B, C, H, W), not {self.images.dtype} {tuple(self.images.shape)}"
            )
        _require_steps(self.whether, self.where, self.what, " of a batch")
        if not len(self.images) == len(self.whether) == len(self.condition):
            counts = f"{len(self.whether)} parses and {len(self.condition)} conditions"
            raise ValueError(f"a batch of {len(self.images)} images cannot have {counts}")

    @classmethod
    def of(cls, images: Tensor, z: PartSequence, condition: Tensor | None = None) -> "Batch":
        """Makes a batch of images, their parses z and, if given, their condition tokens."""
        given = () if condition is None else (condition,)
        return cls(images, z.whether, z.where, z.what, *given)

    @property
    def z(self) -> PartSequence:
        """The parses, with int64 where and what. Read it after `to`, so that `to` copies narrow types."""
        return PartSequence(self.whether, self.where.long(), self.what.long())

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        return super().to(device, non_blocking)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies while the host continues."""
        return self.map(Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray's object store takes NumPy arrays without another copy, unlike pickled tensors.
        return _batch_of_arrays, tuple(tensor.cpu().numpy() for tensor in vars(self).values())


def _batch_of_arrays(*arrays: NDArray[Any]) -> Batch:
    """Builds a batch from copies of `arrays`, since arrays in Ray's object store are read-only."""
    return Batch(*(torch.tensor(array) for array in arrays))
