"""A checkpoint has `state.safetensors` (weights, optimizer moments) and `progress.json`. Neither uses pickle.

`model/NAME` are the weights that a stage passes on. If these are an `Average`, training resumes from the
weights `trained/NAME` instead. `progress.json` is written last and contains the SHA-256 of the state, which
reveals damage. No random state is stored: (seed, step, row) seeds every draw and (seed, epoch) seeds the
order of the data, so the number of images seen determines where a run resumes.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from npdraw_dist.system.errors import OtherFormat, UserError
from npdraw_dist.system.made_by import stamp, version_of
from npdraw_dist.system.storage import display_path, local_copy, read_bytes, sha256

Loaded = TypeVar("Loaded")
Tensors = dict[str, Tensor]
Progress = dict[str, Any]  # JSON: `step`, `generation`, `record` (the metrics at that step)
Load = Callable[[Path], Progress]

PREFIX = "checkpoint_"
KEPT = 2  # number of checkpoints with the best validation that are kept; the newest is kept too
STATE, PROGRESS = "state.safetensors", "progress.json"
START = 10  # the decay after n steps is at most (1 + n) / (START + n), so that the first weights fade quickly


class Average:
    """The moving average of the parameters of `module` over about the last `images` images.

    A stage validates the average and passes it on in place of the trained parameters.
    """

    def __init__(self, module: nn.Module, images: float, batch_size: int) -> None:
        self.decay = math.exp(-batch_size / images)
        self.parameters = dict(module.named_parameters())
        self.weights = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Adds to the average the weights after step `step`, counted from 0. Early weights decay faster."""
        decay = min(self.decay, (1 + step) / (START + step))
        update = get_ema_multi_avg_fn(decay)
        update(list(self.weights.values()), [value.detach() for value in self.parameters.values()], step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the module the averaged weights inside the block, then restores the trained ones."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        _copy(self.weights, self.parameters)
        try:
            yield
        finally:
            _copy(kept, self.parameters)


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    for name, value in to.items():
        value.copy_(weights[name])


def save(
    folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress, average: Average | None = None
) -> None:
    """Writes a checkpoint into `folder`. Raises OSError if the disk is full."""
    tensors = {f"model/{name}": value.cpu().contiguous() for name, value in module.state_dict().items()}
    for name, value in ({} if average is None else average.weights).items():
        tensors[f"trained/{name}"] = tensors[f"model/{name}"]
        tensors[f"model/{name}"] = value.cpu().contiguous()
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{names[parameter]}/{key}"] = torch.as_tensor(value).cpu().contiguous()
    try:
        save_file(tensors, folder / STATE)
    except SafetensorError as error:
        if "I/O error" not in str(error):
            raise
        raise OSError(f"cannot write {folder / STATE}: {error}") from None
    digest = sha256(fs.LocalFileSystem(), str(folder / STATE))
    (folder / PROGRESS).write_text(json.dumps({**progress, **stamp(), "sha256": digest}))


def read(folder: Path) -> tuple[Tensors, Progress]:
    """The tensors and the progress of a checkpoint. Raises UserError if it is damaged or has a newer format.

    Raises OSError if the storage fails, since the checkpoint may be intact.
    """
    try:
        progress = json.loads((folder / PROGRESS).read_text())
        version_of(progress, str(folder))
        for key in stamp():
            progress.pop(key, None)
        if progress.pop("sha256") != sha256(fs.LocalFileSystem(), str(folder / STATE)):
            raise ValueError(f"the SHA-256 of {STATE} is not the one in {PROGRESS}")
        return load_file(folder / STATE), progress
    except OtherFormat:
        raise
    except (SafetensorError, FileNotFoundError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"the checkpoint {folder} is damaged ({error})") from None


def restore(
    folder: Path, module: nn.Module, optimizer: Optimizer, average: Average | None = None
) -> Progress:
    """Loads a checkpoint into module, optimizer and average; returns its progress."""
    tensors, progress = read(folder)
    module.load_state_dict({**weights(tensors), **weights(tensors, kind="trained")})
    if average is not None:
        _copy(weights(tensors), average.weights)
    parameters = dict(module.named_parameters())
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            path, _, key = rest.rpartition("/")
            parameter = parameters[path]
            optimizer.state[parameter][key] = value.to(parameter.device)
    return progress


def weights(tensors: Tensors, prefix: str = "", kind: str = "model") -> Tensors:
    """The state dict of the module at `prefix` (such as "prior.") in a checkpoint. kind: model or trained."""
    start = f"{kind}/{prefix}"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def by_age(filesystem: fs.FileSystem, run: str) -> list[str]:
    """The paths of a run's checkpoints, newest first, incomplete ones included."""
    found = filesystem.get_file_info(fs.FileSelector(run, allow_not_found=True))
    folders = (f for f in found if f.type == fs.FileType.Directory)  # Ray Train's checkpoint list is a file
    own = (f.path for f in folders if re.fullmatch(rf"{PREFIX}\d+(_\d+)?", f.base_name))
    return sorted(own, key=named, reverse=True)


def named(path: str) -> tuple[int, int]:
    """The step and the generation in the name of a checkpoint."""
    step, _, generation = path.rpartition("/")[2].removeprefix(PREFIX).partition("_")
    return int(step), int(generation or 0)


@dataclass(frozen=True)
class Criterion:
    """The metric that ranks checkpoints."""

    name: str
    order: Literal["max", "min"]

    @property
    def worst(self) -> float:
        """The worst finite value, since Ray Train stores NaN and infinities as null, which it cannot sort."""
        return -sys.float_info.max if self.order == "max" else sys.float_info.max

    def score(self, record: dict[str, float]) -> float:
        """The metric's value in a record, negated if lower is better; -inf if it is NaN."""
        value = float(record[self.name])
        if math.isnan(value):
            return -math.inf
        return value if self.order == "max" else -value


def by_score(filesystem: fs.FileSystem, run: str, criterion: Criterion) -> list[str]:
    """The paths of a run's checkpoints, best first; equal ones newest first, incomplete ones last."""

    def score(path: str) -> float:
        try:
            return criterion.score(json.loads(read_bytes(filesystem, f"{path}/{PROGRESS}"))["record"])
        except (OSError, ValueError, KeyError, TypeError):
            return -math.inf  # the checkpoint is incomplete

    return sorted(by_age(filesystem, run), key=score, reverse=True)


class Found(NamedTuple, Generic[Loaded]):
    """A readable checkpoint. loaded: result of `load`. damaged: a message for each damaged one before it."""

    loaded: Loaded
    path: str
    damaged: list[str]


class FirstDamaged(UserError):
    """All checkpoints of a run are damaged and of the same step, so the stage starts again from scratch."""

    generation: int  # suffix of the names of the next checkpoints (`Newest`)


def first_readable(
    filesystem: fs.FileSystem, run: str, paths: Sequence[str], load: Callable[[Path], Loaded]
) -> Found[Loaded] | None:
    """Calls `load(folder)` on the first of `paths` that is not damaged; None if there are no paths.

    Raises FirstDamaged or UserError if all are damaged, and OtherFormat if a newer version wrote one. Raises
    OSError if the storage fails, since training would otherwise silently resume from an older checkpoint.
    """
    damaged: list[str] = []
    for path in paths:
        try:
            with local_copy(filesystem, path) as folder:
                return Found(load(folder), path, damaged)
        except OtherFormat:  # a newer version made it, so it is not damaged
            raise
        except (UserError, FileNotFoundError) as error:
            damaged.append(f"{display_path(filesystem, path)}: {error}")
    names = [named(path) for path in paths]
    if len({step for step, _ in names}) == 1:  # with several steps, too much work would be lost silently
        first = FirstDamaged(damaged[0])
        first.generation = 1 + max(generation for _, generation in names)
        raise first
    if damaged:
        raise UserError(
            f"every checkpoint is damaged; delete {display_path(filesystem, run)} to start again: "
            f"{damaged[0]}"
        )
    return None


class Newest(NamedTuple):
    """`progress` and `path` of the newest undamaged checkpoint, or {} and None if training starts again.

    generation: suffix of the next checkpoints' names, which makes them differ from the damaged ones' names.
    lines: messages to the user.
    """

    progress: Progress
    generation: int
    path: str | None
    lines: list[str]


def newest(filesystem: fs.FileSystem, run: str, load: Load) -> Newest | None:
    """Calls `load(folder)` on the newest undamaged checkpoint; None if there are no checkpoints.

    Raises what `first_readable` raises, except FirstDamaged.
    """
    paths = by_age(filesystem, run)
    try:
        found = first_readable(filesystem, run, paths, load)
    except FirstDamaged as error:
        return Newest(
            {}, error.generation, None, [f"a damaged checkpoint is not used: {error}; training begins anew"]
        )
    if found is None:
        return None
    lines = [f"a damaged checkpoint is not used: {line}" for line in found.damaged]
    lines.append(f"resumes from {found.path.rpartition('/')[2]}")
    above = [1 + named(path)[1] for path in paths[: len(found.damaged)]]
    return Newest(found.loaded, max([found.loaded["generation"], *above]), found.path, lines)
