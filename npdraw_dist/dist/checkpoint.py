"""A checkpoint is `state.safetensors` (weights and Adam's moments) and `progress.json`. No pickle.

Nothing random is stored: every draw is seeded by (seed, step, micro-batch), and the order of the
data by (seed, epoch), so the images seen are the whole position of a run.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from npdraw_dist.core.errors import UserError

STATE, PROGRESS = "state.safetensors", "progress.json"


def save(folder: Path, module: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Writes a checkpoint into `folder`."""
    tensors = {f"model/{name}": value.cpu().contiguous() for name, value in module.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{names[parameter]}/{key}"] = torch.as_tensor(value).cpu().contiguous()
    save_file(tensors, folder / STATE)
    (folder / PROGRESS).write_text(json.dumps(progress))


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the progress of a checkpoint; raises UserError where it is damaged."""
    try:
        return load_file(folder / STATE), json.loads((folder / PROGRESS).read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"the checkpoint {folder} is damaged ({error}); delete it to go on from the one before"
        ) from None


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
