"""The latent canvas with gradients: soft *what*, straight-through *where*, gated by *whether*.

Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas.
"""

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.paste import paste, paste_aligned


def soft_canvas(
    bank: Tensor,
    what: Tensor,
    gate: Tensor,
    where: Tensor | None,
    where_weights: Tensor | None,
    grid: Grid,
) -> Tensor:
    """bank (K, C, P, P), what (B, T, K) weights, gate (B, T), where (B, T) -> (B, C, h, w).

    where is None if step t is place t. where_weights (B, T, L), a straight-through one-hot of where, does not
    change the value. It carries the gradient of *where*: what the part at each place would add to the canvas,
    pixel by pixel.
    """
    batch, steps, _ = what.shape
    channels, patch = bank.shape[1], bank.shape[2]
    parts = (what @ bank.flatten(1)) * gate[..., None]
    parts = parts.view(batch, steps, channels, patch, patch)
    if where is None:
        return paste_aligned(parts, grid)
    canvas = paste(parts, where, grid)
    if where_weights is not None:
        change = where_weights - where_weights.detach()  # zero, with a gradient
        moved = torch.einsum("btl,btd->bld", change, parts.detach().flatten(2))
        canvas = canvas + grid.fold_sum(moved.view(batch, grid.places, channels, patch, patch))
    return canvas
