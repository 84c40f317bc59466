"""The heuristic parser p_h(z|x), which finds the parts and places that redraw an image (paper section 3.1).

A chooser takes the parts that most reduce the squared error between canvas and image, where the canvas is the
maximum of its parts. `core.orders` arranges the chosen places as steps. Choosers work on the ink of images
(`Grid.ink`).
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS, by_gain
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.parse.cost import EmptyCanvasGain
from npdraw_dist.parse.greedy import GreedyChooser, StaticGreedyChooser
from npdraw_dist.system.errors import UserError

MIN_GAIN = 0.05  # a part must reduce the squared error by at least this
# Largest number of scores in one chunk of images. The scores of disjoint places then stay in a CPU's cache.
# The greedy parser takes many small steps, and a GPU needs enough work, so both are faster with more images.
_SCORES_DISJOINT, _SCORES_GREEDY, _SCORES_GPU = 1 << 21, 1 << 22, 1 << 26


@dataclass(frozen=True)
class Parse:
    """Drawings z (B, T), and squared_error (B,), the mean of (canvas - image)^2 of each image."""

    z: PartSequence
    squared_error: Tensor


class DisjointChooser:
    """Chooses parts for places that share no pixel; each place is decided independently."""

    def __init__(self, bank: PartBank, grid: Grid, steps: int, min_gain: float) -> None:
        self.grid, self.steps = grid, steps
        # The largest float32 below min_gain, so that a gain of min_gain is enough, but never a gain of 0.
        self.too_little = max(float(np.nextafter(np.float32(min_gain), np.float32(-1))), 0.0)
        self.empty = EmptyCanvasGain(bank, grid, min_gain)

    def choose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, h, w) -> chosen (B, L) bool; what, gain (B, L), 0 if not chosen; mean squared error (B,)."""
        gain, what, energy = self.empty.best(images)
        gain = F.threshold(gain, self.too_little, 0)
        if self.steps < self.grid.places:
            gain.scatter_(1, by_gain(gain > 0, gain)[:, self.steps :], 0)
        chosen = gain > 0
        # Each pixel is in one place only, so the gains add up to the reduction of the error.
        left = (energy - gain.sum(1)).clamp_(min=0) / images[0].numel()
        return chosen, what.mul_(chosen), gain, left


class Parser:
    """Parses images with the parts of `bank` at the places of `grid`, on the bank's device.

    If places are disjoint (stride = P), each gets its nearest part, and the T parts with the largest gains
    are drawn. If places overlap, parts are chosen greedily, at most one for each place. A part is drawn if it
    reduces the sum of squared pixel differences by at least `min_gain`, and by more than 0. steps: T. order:
    a name in ORDERS; an aligned order needs T = L. Raises UserError if the arguments do not fit together.
    """

    def __init__(
        self, bank: PartBank, grid: Grid, steps: int, order: str, min_gain: float = MIN_GAIN
    ) -> None:
        if bank.patch != grid.patch:
            raise UserError(
                f"grid.patch is {grid.patch}, but the bank's parts have {bank.patch} pixels a side; "
                "run the stage `bank` again"
            )
        if order not in ORDERS:
            raise UserError(f"parse.order is {order!r}; choose one of {', '.join(ORDERS)}")
        self.order = ORDERS[order]
        if not 1 <= steps <= grid.places or (self.order.aligned and steps != grid.places):
            limit = f"{grid.places} in order {order}" if self.order.aligned else f"1 to {grid.places}"
            raise UserError(f"parse.steps is {steps}; set it to {limit}")
        self.bank, self.grid, self.steps = bank, grid, steps
        ink, of_ink = PartBank(grid.ink(bank.parts)), grid.of_ink
        on_cpu, each = bank.parts.device.type == "cpu", grid.places * len(bank)
        scores = _SCORES_DISJOINT if grid.disjoint else _SCORES_GREEDY
        self.chooser: DisjointChooser | GreedyChooser
        if grid.disjoint:
            self.chooser = DisjointChooser(ink, of_ink, steps, min_gain)
            if self.chooser.empty.skips:
                scores *= 2  # about half of the places are scored, 30% to 60% on glyphs
        elif on_cpu:
            self.chooser = GreedyChooser(ink, of_ink, steps, min_gain)
        else:
            self.chooser = StaticGreedyChooser(ink, of_ink, steps, min_gain)
            each = self.chooser.numbers_an_image
        most = max(1, (scores if on_cpu else _SCORES_GPU) // each)
        # A power of two divides most batch sizes. A smaller last chunk would need a new `_Workspace`.
        self.chunk = 1 << (most.bit_length() - 1)

    @classmethod
    def of(cls, experiment: Experiment, bank: PartBank) -> "Parser":
        """The parser that the settings of an experiment describe."""
        return cls(bank, experiment.canvas_grid, experiment.steps, experiment.parse.order)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Parse:
        """Parses images (B, C, h, w) of canvas size, uint8 or floats in [0, 1]. Does not check the range.

        Raises ValueError on another shape or type.
        """
        batch, *shape = images.shape
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images must be uint8, or floats in [0, 1], not {images.dtype}")
        if shape != [self.bank.channels, self.grid.height, self.grid.width]:
            raise ValueError(
                f"images must be (B, {self.bank.channels}, {self.grid.height}, {self.grid.width}), "
                f"not {tuple(images.shape)}"
            )
        if batch:
            chunks = [self.chooser.choose(self.grid.ink(chunk)) for chunk in torch.split(images, self.chunk)]
        else:
            none = self.bank.parts.new_empty(0, self.grid.places)
            chunks = [(none.bool(), none.long(), none, none.sum(1))]
        chosen, what, gain, squared_error = (
            torch.cat(column) if len(column) > 1 else column[0] for column in zip(*chunks, strict=True)
        )
        whether, where = self.order.arrange(chosen, gain, self.grid, self.steps)
        if not self.order.aligned:
            what = what.gather(1, where) * whether
        return Parse(PartSequence(whether, where, what), squared_error)
