"""A checkpoint is `state.safetensors` (weights and Adam's moments) and `progress.json`. No pickle.

`progress.json` is written last and holds the state's SHA-256, so a half-written or damaged checkpoint
is known, and the one before it is taken. Nothing random is stored: every draw is seeded by (seed,
step, micro-batch), and the order of the data by (seed, epoch), so the images seen are the whole
position of a run.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import local_copy, read_bytes, sha256, shown

Loaded = TypeVar("Loaded")

PREFIX = "checkpoint_"
STATE, PROGRESS = "state.safetensors", "progress.json"


def save(folder: Path, module: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Writes a checkpoint into `folder`."""
    tensors = {f"model/{name}": value.cpu().contiguous() for name, value in module.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{names[parameter]}/{key}"] = torch.as_tensor(value).cpu().contiguous()
    save_file(tensors, folder / STATE)
    digest = sha256(fs.LocalFileSystem(), str(folder / STATE))
    (folder / PROGRESS).write_text(json.dumps({**progress, "sha256": digest}))


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the progress of a checkpoint; raises UserError where it is damaged."""
    try:
        progress = json.loads((folder / PROGRESS).read_text())
        if progress.pop("sha256") != sha256(fs.LocalFileSystem(), str(folder / STATE)):
            raise ValueError(f"{STATE} has not the SHA-256 that {PROGRESS} states")
        return load_file(folder / STATE), progress
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"the checkpoint {folder} is damaged ({error})") from None


def listed(filesystem: fs.FileSystem, run: str) -> list[str]:
    """The paths of a run's checkpoints, newest first, half-written ones included."""
    found = filesystem.get_file_info(fs.FileSelector(run, allow_not_found=True))
    folders = (f for f in found if f.type == fs.FileType.Directory)  # Ray Train's own list is a file
    return sorted((f.path for f in folders if f.base_name.startswith(PREFIX)), reverse=True)


@dataclass(frozen=True)
class Criterion:
    """The number of a checkpoint's record by which one is better than another."""

    name: str
    order: Literal["max", "min"]

    def rank(self, record: dict[str, Any]) -> float:
        """The higher, the better."""
        value = float(record[self.name])
        return value if self.order == "max" else -value


def ranked(filesystem: fs.FileSystem, run: str, criterion: Criterion) -> list[str]:
    """The paths of a run's checkpoints, best first, newer first among equals; those without a record last."""

    def rank(path: str) -> float:
        try:
            return criterion.rank(json.loads(read_bytes(filesystem, f"{path}/{PROGRESS}"))["record"])
        except (OSError, ValueError, KeyError, TypeError):
            return -math.inf  # half-written

    return sorted(listed(filesystem, run), key=rank, reverse=True)


def newest(
    filesystem: fs.FileSystem, run: str, load: Callable[[Path], Loaded]
) -> tuple[Loaded, str, list[str]] | None:
    """`load(folder)` of the newest checkpoint of the folder `run` that is whole, and its path.

    The last of the three are the newer ones that are damaged, told in a line each. None where there
    is none at all. Raises UserError where all are damaged.
    """
    return first_whole(filesystem, run, listed(filesystem, run), load)


def first_whole(
    filesystem: fs.FileSystem, run: str, paths: Sequence[str], load: Callable[[Path], Loaded]
) -> tuple[Loaded, str, list[str]] | None:
    """`newest` of checkpoints at `paths`, in their order."""
    damaged: list[str] = []
    for path in paths:
        try:
            with local_copy(filesystem, path) as folder:
                return load(folder), path, damaged
        except (UserError, OSError) as error:
            damaged.append(f"{shown(filesystem, path)}: {error}")
    if damaged:
        raise UserError(
            f"no checkpoint is whole; delete {shown(filesystem, run)} to start anew: {damaged[0]}"
        )
    return None


def restore(folder: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Loads a checkpoint into module and optimizer; returns its progress."""
    tensors, progress = read(folder)
    module.load_state_dict(weights(tensors))
    parameters = dict(module.named_parameters())
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            path, _, key = rest.rpartition("/")
            parameter = parameters[path]
            optimizer.state[parameter][key] = value.to(parameter.device)
    return progress


def weights(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The state dict of the module at `prefix` (such as "prior.") out of a checkpoint's tensors."""
    start = f"model/{prefix}"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
