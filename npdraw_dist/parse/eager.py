"""The greedy choice of `parse.greedy`, as steps of one shape: for a GPU, for which the host does not wait.

The lazy choice scores few places, but asks after each score which ones are left. Here all neighbours of a
paste are scored, in every image and at every step, and what does not count is masked. The result is the same.
Shapes: B batch, K parts, L places, M neighbours of a place and itself, D = C P P, S pixels of all channels of
a padded image.
"""

import torch
from torch import Tensor

from npdraw_dist.core.images import to_float
from npdraw_dist.parse.cost import best_rows, canvas_gain
from npdraw_dist.parse.greedy import GreedyChooser, State

LARGEST = 1 << 27  # numbers of one table of pixels of parts at places, at most


class EagerChooser(GreedyChooser):
    """Chooses at most `steps` parts for each image, each with a gain of at least `min_gain` and above 0."""

    def brightest(self) -> float:
        return 1.0  # pixels of parts are in [0, 1]; to ask for the largest would be to wait

    def choose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = to_float(images) if images.dtype == torch.uint8 else images
        state = self.start(images)
        rows = torch.arange(len(images), device=images.device)
        for step in range(self.steps):
            gain, place = state.top.max(1)
            drawn = self.worth(gain)  # an image without a part that is worth it never has one later
            place = place.clamp(max=self.grid.places - 1)  # the column of no place, where nothing is left
            self._paste_some(state, rows, place, drawn)
            state.gain[rows, place] = torch.where(drawn, gain, state.gain[rows, place])
            if step + 1 < self.steps:
                self._score_around(state, rows, place, drawn)
        return self.result(state, images)

    def _paste_some(self, state: State, rows: Tensor, place: Tensor, drawn: Tensor) -> None:
        """Pastes the best part of `place` (B,) on the images that are `drawn` (B,)."""
        pixels = self.pixels(rows, place)
        before = state.canvas.take(pixels)
        after = torch.maximum(before, self.parts[state.what[rows, place]].T)
        state.canvas.view(-1)[pixels] = torch.where(drawn, after, before)
        state.used[rows, place] |= drawn
        state.top[rows, place] = state.top[rows, place].masked_fill(drawn, -torch.inf)

    def _score_around(self, state: State, rows: Tensor, place: Tensor, drawn: Tensor) -> None:
        """Scores the places that share a pixel with `place` (B,), of the images that are `drawn` (B,)."""
        each = self.parts.numel() * len(rows)
        for around in torch.split(self.around[place], max(LARGEST // each, 1), dim=1):
            there = around.clamp(max=self.grid.places - 1)  # neighbours off the grid are masked below
            pixels = self.pixels(rows.repeat_interleave(around.shape[1]), there.flatten())
            gain, part = best_rows(
                canvas_gain(self.parts, state.image.take(pixels), state.canvas.take(pixels))
            )
            row = rows[:, None]
            new = drawn[:, None] & ~state.used[row, around]
            state.top[row, around] = torch.where(new, gain.view_as(around), state.top[row, around])
            state.what[row, around] = torch.where(new, part.view_as(around), state.what[row, around])
