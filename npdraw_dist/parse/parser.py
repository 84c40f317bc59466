"""The heuristic parser p_h(z|x): an image into the parts and places that redraw it.

Choosing and ordering are separate: the parts are chosen here, by their fall of the squared error
between canvas and image under the renderer's max-compose, and ordered in orders.py.
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.parse.cost import EmptyCanvasGain
from npdraw_dist.parse.greedy import Greedy
from npdraw_dist.parse.orders import ORDERS, arrange, ranked

# Scores held at once: those of disjoint places stay in a CPU's cache, the many small steps of the
# greedy parser want more images, and a GPU wants to be filled.
_CHUNK_TILES, _CHUNK_GREEDY, _CHUNK_GPU = 1 << 20, 1 << 22, 1 << 26


@dataclass(frozen=True)
class Parse:
    """What the parser found.

    z: (B, T). squared_error: (B,), mean over the pixels of (canvas - image)^2. gain: (B, T), what the
    part of a step took off the summed squared error when it was chosen, 0 where nothing is drawn.
    """

    z: PartSequence
    squared_error: Tensor
    gain: Tensor
    bank: PartBank
    grid: Grid

    @cached_property
    def canvas(self) -> Tensor:
        """(B, C, h, w), the drawing of z, rendered when asked for."""
        return render(self.bank.parts, self.z, self.grid)


class Tiles:
    """Chooses for disjoint places, where every place is on its own."""

    def __init__(self, bank: PartBank, grid: Grid, steps: int, min_gain: float) -> None:
        self.grid, self.steps = grid, steps
        # The largest float32 under min_gain, for a gain of min_gain draws; one of 0 never does.
        self.too_little = max(float(np.nextafter(np.float32(min_gain), np.float32(-1))), 0.0)
        self.empty = EmptyCanvasGain(bank, grid)

    def choose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, h, w) -> chosen (B, L) bool, what (B, L), gain (B, L), mean squared error (B,).

        what and gain are 0 where nothing is chosen.
        """
        gain, what, energy = self.empty.best(images)
        gain = F.threshold(gain, self.too_little, 0)
        if self.steps < self.grid.places:
            gain.scatter_(1, ranked(gain > 0, gain)[:, self.steps :], 0)
        chosen = gain > 0
        # Each pixel lies in one place, so that the gains add up to the fall of the error.
        left = (energy - gain.sum(1)).clamp_(min=0) / images[0].numel()
        return chosen, what.mul_(chosen), gain, left


class Parser:
    """Parses images with the parts of `bank` at the places of `grid`, on the bank's device.

    Disjoint places (stride = P) each get their nearest part, the T of largest gain where more gain.
    Overlapping ones are chosen greedily; a place is used once. A part is drawn where it takes at
    least `min_gain` (and more than 0) off the sum of squared pixel differences.

    steps: T. order: one of ORDERS; `aligned` takes T = L.
    Raises UserError where bank, grid, steps and order do not fit each other.
    """

    def __init__(self, bank: PartBank, grid: Grid, steps: int, order: str, min_gain: float) -> None:
        if bank.patch != grid.patch:
            raise UserError(
                f"grid.patch is {grid.patch}, but the bank's parts have {bank.patch} pixels a side; "
                "run the stage `bank` again"
            )
        if order not in ORDERS:
            raise UserError(f"parse.order is {order!r}; choose one of {', '.join(ORDERS)}")
        if not 1 <= steps <= grid.places or (order == "aligned" and steps != grid.places):
            limit = f"{grid.places} in order aligned" if order == "aligned" else f"1 to {grid.places}"
            raise UserError(f"parse.steps is {steps}; set it to {limit}")
        if not min_gain >= 0:
            raise UserError(f"parse.min_gain is {min_gain}; set it to 0 or more")
        self.bank, self.grid, self.steps, self.order = bank, grid, steps, order
        self.chooser = (Tiles if grid.disjoint else Greedy)(bank, grid, steps, min_gain)
        scores = _CHUNK_TILES if grid.disjoint else _CHUNK_GREEDY
        if bank.parts.device.type != "cpu":
            scores = _CHUNK_GPU
        self.chunk = max(1, scores // (grid.places * len(bank)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Parse:
        """images (B, C, h, w) of canvas size: uint8, or float32 in [0, 1]. Raises ValueError otherwise."""
        batch, *shape = images.shape
        if shape != [self.bank.channels, self.grid.height, self.grid.width]:
            raise ValueError(
                f"images are (B, {self.bank.channels}, {self.grid.height}, {self.grid.width}), "
                f"not {tuple(images.shape)}"
            )
        if batch:
            chunks = [self.chooser.choose(chunk) for chunk in images.split(self.chunk)]
        else:
            none = self.bank.parts.new_empty(0, self.grid.places)
            chunks = [(none.bool(), none.long(), none, none.sum(1))]
        chosen, what, gain, squared_error = (
            torch.cat(column) if len(column) > 1 else column[0] for column in zip(*chunks, strict=True)
        )
        whether, where = arrange(chosen, gain, self.grid, self.steps, self.order)
        if self.order != "aligned":
            what, gain = what.gather(1, where) * whether, gain.gather(1, where) * whether
        return Parse(PartSequence(whether, where, what), squared_error, gain, self.bank, self.grid)
