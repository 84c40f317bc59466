"""Section `operations`, which counts what a VAE step starts on a GPU, without a GPU and without data.

The step runs on torch's `meta` device, which has shapes but no values. It draws its noise as on a GPU. Casts
of mixed precision and the optimizer are left out: a fused optimizer is one operation for a group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.noise import Ahead, dropout_noise
from npdraw_dist.core.parts import Batch
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.training.feed import noise_of_rows

META = torch.device("meta")
ROWS = 512
# They start nothing on a GPU: they make views or empty memory, or numbers that stay in the process.
NO_KERNEL = ("detach", "_unsafe_view", "empty", "new_empty", "scalar_tensor", "lift_fresh")


class Counter(TorchDispatchMode):
    """Counts the operations in its block, and the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(found) if isinstance(value, torch.Tensor)]
        if made and not func.is_view and not func.name().removeprefix("aten::").startswith(NO_KERNEL):
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            self.operations += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        return found


class FusedAttention(TorchFunctionMode):
    """Computes attention in its block by a GPU's kernel, which `meta` divides into its parts."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(*args, None, compute_log_sumexp=True, **kwargs)[0]


def run(work: Workload) -> Figures:
    """Counts forward and backward passes of a micro-batch of ROWS rows, with relaxed and with hard draws."""
    figures: Figures = {"operations_rows": ROWS}
    for name, progress in (("vae_step", 0.0), ("vae_hard_step", 1.0)):
        counted = count(work.experiment, progress)
        figures |= {f"{name}_operations": counted.operations, f"{name}_gb": counted.bytes / 1e9}
    return figures


def count(experiment: Experiment, progress: float) -> Counter:
    """Counts a step after the share `progress` of the budget: the third, since later ones are like it."""
    with META:
        objective = VAEObjective(NPDraw(ModelSpec.of(experiment)), experiment.vae)
        index = torch.empty(ROWS, experiment.steps, dtype=torch.int16)
        images = torch.empty(ROWS, *experiment.data.shape, dtype=torch.uint8)
        batch, ahead = Batch(images, index.bool(), index, index), Ahead()
    for _ in range(3):
        objective.zero_grad()
        with Counter() as counter, FusedAttention():
            noise = noise_of_rows(0, 0, ROWS, META, ahead)
            with dropout_noise(objective, noise):
                loss, _ = objective(batch, progress, noise)
            loss.sum().backward()
    return counter
