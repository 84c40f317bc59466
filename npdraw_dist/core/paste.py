"""Pastes parts on a canvas by maximum, for parser and renderer (paper section 3.1).

The authors multiply one-hot codes by the bank and by Gaussian filter banks. A gather and a scatter give the
same canvas without the (B, T, K, C, P, P) tensor.
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, H x W canvas.
"""

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence


def gather_parts(bank: Tensor, z: PartSequence) -> Tensor:
    """bank (K, C, P, P), z (B, T) -> (B, T, C, P, P): the part of each step, zeros if whether is 0."""
    return bank[z.what] * z.whether[..., None, None, None]


def paste(parts: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """parts (B, T, C, P, P), where (B, T) -> canvas (B, C, H, W), the maximum over steps and 0.

    Differentiable in `parts`: the gradient of a pixel goes to the part that is visible there.
    """
    batch, steps, channels = parts.shape[:3]
    index = grid.pixels_on(where.device)[where]  # (B, T, P*P)
    index = index[:, None].expand(-1, channels, -1, -1).reshape(batch, channels, -1)
    values = parts.reshape(batch, steps, channels, -1).transpose(1, 2).reshape(batch, channels, -1)
    canvas = parts.new_zeros(batch, channels, grid.padded_height * grid.padded_width)
    canvas = canvas.scatter_reduce(2, index, values, "amax")
    return grid.crop(canvas.view(batch, channels, grid.padded_height, grid.padded_width))


def paste_aligned(parts: Tensor, grid: Grid) -> Tensor:
    """`paste` if step t is place t (T = L): (B, L, C, P, P) -> (B, C, H, W). A reshape if disjoint."""
    if grid.disjoint:
        return grid.fold_sum(parts)
    where = torch.arange(grid.places, device=parts.device).expand(len(parts), -1)
    return paste(parts, where, grid)


def paste_steps(parts: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """parts (B, T, C, P, P), where (B, T) -> (B, T, C, H, W): the canvas after each step. No gradient."""
    if parts.device.type != "cpu":
        return paste_steps_at_once(parts, where, grid)
    batch, steps, channels = parts.shape[:3]
    size = grid.padded_height * grid.padded_width
    # Steps are the first axis, so that each canvas is contiguous in memory.
    index = grid.pixels_on(where.device)[where.t()]
    values = parts.detach().reshape(batch, steps, channels, -1).transpose(0, 1)
    out = parts.new_empty(steps, batch, channels, size)
    canvas = parts.new_zeros(batch, channels, size)
    for step in range(steps):
        place = index[step, :, None].expand(-1, channels, -1)
        canvas.scatter_(2, place, torch.maximum(canvas.gather(2, place), values[step]))
        out[step] = canvas
    out = out.view(steps, batch, channels, grid.padded_height, grid.padded_width)
    return grid.crop(out.transpose(0, 1))


def paste_steps_at_once(parts: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """`paste_steps` in few kernels, for a GPU. It takes four times the memory, and on a CPU more time."""
    batch, steps, channels = parts.shape[:3]
    values = parts.detach().clamp(min=0).flatten(3)
    index = grid.pixels_on(where.device)[where][:, :, None].expand_as(values)
    pasted = values.new_zeros(batch, steps, channels, grid.padded_height * grid.padded_width)
    canvases = pasted.scatter_(3, index, values).cummax(1).values
    return grid.crop(canvases.view(batch, steps, channels, grid.padded_height, grid.padded_width))


def render(bank: Tensor, z: PartSequence, grid: Grid) -> Tensor:
    """The canvas (B, C, H, W) of z."""
    return paste(gather_parts(bank, z), z.where, grid)
