"""Muon (Jordan et al. 2024): the step of a matrix is its momentum with all singular values set near 1.

Shapes: N matrices of R rows and C columns; a convolution's weight (R, ...) is flattened to a matrix.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

SMALLEST = 16  # minimum rows and columns of a matrix; AdamW trains smaller ones
MOMENTUM = 0.95
# The root mean square of a step divided by the learning rate. It is about that of AdamW, so that both use the
# same rates (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
MATCH = 0.2
# Newton-Schulz: x <- a x + (b A + c A A) x with A = x x'. ITERATIONS steps bring the singular values near 1.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(AdamW):
    """Trains large matrices in groups with `matrices` true by Muon, and all other parameters by AdamW.

    found_inf: a tensor, as for fused AdamW; if it is 1, a step changes nothing. No step waits for a GPU.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__([part for group in groups for part in _split(group)], **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        broken: Tensor | None = vars(self).get("found_inf")
        for group in groups:
            if group["muon"] and group["lr"]:
                self._step(group, broken)

    def _step(self, group: dict[str, Any], broken: Tensor | None) -> None:
        directions: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            momentum: Tensor = state["momentum"]
            grad = weight.grad if broken is None else torch.where(broken > 0, momentum, weight.grad)
            momentum.lerp_(grad, 1 - MOMENTUM)
            direction = grad.lerp(momentum, MOMENTUM).flatten(1)
            if direction.shape[0] > direction.shape[1]:
                direction = direction.t()
            rows, columns = direction.shape
            directions.setdefault((rows, columns), []).append((weight, direction))
        for (_, columns), found in directions.items():  # stacking equal shapes needs fewer kernels
            rate = group["lr"] * (1.0 if broken is None else 1 - broken)
            weights, stacked = zip(*found, strict=True)
            for weight, step in zip(weights, orthogonal(torch.stack(stacked)), strict=True):
                own = step if weight.shape[0] <= weight[0].numel() else step.t()
                decay = group["weight_decay"] * weight
                weight.sub_(rate * (MATCH * columns**0.5 * own.reshape(weight.shape) + decay))


def orthogonal(x: Tensor) -> Tensor:
    """x (N, R, C), R <= C -> (N, R, C) with the singular vectors of x, and singular values of 0.7 to 1.2."""
    a, b, c = QUINTIC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _split(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Splits a group into its large matrices and its other parameters; leaves out an empty part."""
    muon = [p for p in group["params"] if group["matrices"] and _is_large(p)]
    large = {id(p) for p in muon}
    rest = [p for p in group["params"] if id(p) not in large]
    parts = [{**group, "params": muon, "muon": True}, {**group, "params": rest, "muon": False}]
    return [part for part in parts if part["params"]]


def _is_large(weight: Tensor) -> bool:
    rows = weight.shape[0]
    return rows >= SMALLEST and weight.numel() >= rows * SMALLEST
