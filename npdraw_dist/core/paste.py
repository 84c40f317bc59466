"""Pastes parts on a canvas by the maximum of their ink, for parser and renderer (paper section 3.1).

Ink is brightness on a black background and darkness on a white one. A gather and a scatter give the same
canvas as the authors' one-hot codes and Gaussian filter banks, without a (B, T, K, C, P, P) tensor.
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, H x W canvas.
"""

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid, pixels_on
from npdraw_dist.core.parts import PartSequence


def gather_parts(bank: Tensor, z: PartSequence, grid: Grid) -> Tensor:
    """bank (K, C, P, P), z (B, T) -> (B, T, C, P, P): each step's part, or background if none is drawn."""
    drawn = z.whether[..., None, None, None]
    return bank[z.what] * drawn if grid.background == 0 else bank[z.what].where(drawn, grid.background)


def paste(parts: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """parts (B, T, C, P, P), where (B, T) -> canvas (B, C, H, W), the most ink of any part at each pixel.

    Differentiable in `parts`: the gradient of a pixel goes to the part that is visible there.
    """
    batch, steps, channels = parts.shape[:3]
    index = pixels_on(grid, where.device)[where]  # (B, T, P*P)
    index = index[:, None].expand(-1, channels, -1, -1).reshape(batch, channels, -1)
    values = parts.reshape(batch, steps, channels, -1).transpose(1, 2).reshape(batch, channels, -1)
    canvas = parts.new_full((batch, channels, grid.padded_height * grid.padded_width), grid.background)
    canvas = canvas.scatter_reduce(2, index, values, "amin" if grid.background else "amax")
    return grid.crop(canvas.view(batch, channels, grid.padded_height, grid.padded_width))


def paste_aligned(parts: Tensor, grid: Grid) -> Tensor:
    """`paste` for drawings whose step t draws at place t (T = L): (B, L, C, P, P) -> (B, C, H, W)."""
    if grid.disjoint:
        return grid.fold_sum(parts)
    where = torch.arange(grid.places, device=parts.device).expand(len(parts), -1)
    return paste(parts, where, grid)


def paste_steps(parts: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """parts (B, T, C, P, P), where (B, T) -> (B, T, C, H, W), the canvas after each step. No gradient."""
    if parts.device.type != "cpu":
        return paste_steps_at_once(parts, where, grid)
    batch, steps, channels = parts.shape[:3]
    size = grid.padded_height * grid.padded_width
    # Steps are the first axis, so that each canvas is contiguous in memory.
    index = pixels_on(grid, where.device)[where.t()]
    values = parts.detach().reshape(batch, steps, channels, -1).transpose(0, 1)
    out = parts.new_empty(steps, batch, channels, size)
    canvas = parts.new_full((batch, channels, size), grid.background)
    more_ink = torch.minimum if grid.background else torch.maximum
    for step in range(steps):
        place = index[step, :, None].expand(-1, channels, -1)
        canvas.scatter_(2, place, more_ink(canvas.gather(2, place), values[step]))
        out[step] = canvas
    out = out.view(steps, batch, channels, grid.padded_height, grid.padded_width)
    return grid.crop(out.transpose(0, 1))


def paste_steps_at_once(parts: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """`paste_steps` in few kernels, for a GPU. It needs four times the memory, and is slower on a CPU.

    Differentiable in `parts`: the gradient of a pixel goes to the step that is visible there.
    """
    batch, steps, channels = parts.shape[:3]
    values = parts.flatten(3)
    index = pixels_on(grid, where.device)[where][:, :, None].expand_as(values)
    area = (batch, steps, channels, grid.padded_height * grid.padded_width)
    empty = values.new_full(area, grid.background)
    if grid.background:
        canvases = empty.scatter_(3, index, values.clamp(max=1)).cummin(1).values
    else:
        canvases = empty.scatter_(3, index, values.clamp(min=0)).cummax(1).values
    return grid.crop(canvases.view(batch, steps, channels, grid.padded_height, grid.padded_width))


def render(bank: Tensor, z: PartSequence, grid: Grid) -> Tensor:
    """The canvas (B, C, H, W) of z."""
    return paste(gather_parts(bank, z, grid), z.where, grid)
