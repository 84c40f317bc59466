"""The greedy choice of `parse.greedy` in operations of fixed shapes, for a GPU, which never waits.

Every image takes all T steps, and all neighbours of a pasted part are scored again. The result is the same.
Shapes: B batch, K parts, L places, M neighbours of a place and itself, C channels, D = C P P, S pixels of all
channels of a padded image.
"""

import torch
from torch import Tensor

from npdraw_dist.core.images import to_float
from npdraw_dist.parse.cost import best_rows, canvas_gain
from npdraw_dist.parse.greedy import GreedyChooser, State


class StaticGreedyChooser(GreedyChooser):
    """`GreedyChooser` without a wait for the device."""

    @property
    def numbers_an_image(self) -> int:
        """Numbers that the largest tensor holds for each image."""
        return len(self.parts) * max(self.parts.shape[1] * self.around.shape[1], self.grid.places)

    def brightest(self) -> float:
        return 1.0  # pixels are in [0, 1]; finding the largest would wait for the device

    def choose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `GreedyChooser.choose`."""
        images = to_float(images) if images.dtype == torch.uint8 else images
        state = self.start(images)
        for step in range(self.steps):
            gain, place = state.top.max(1, keepdim=True)
            draws = self.worth(gain)
            self._draw(state, place, draws)
            state.gain.scatter_add_(1, place.clamp(max=self.grid.places - 1), gain.where(draws, 0))
            if step + 1 < self.steps:
                self._score_around(state, place, draws)
        return self.result(state, images)

    def _pixels_of(self, places: Tensor) -> Tensor:
        """places (B, N) -> (B, N, D): their pixels in a row of S. Column L gets the pixels of place 0."""
        inside = places.where(places < self.grid.places, 0)
        return self.place_corner[inside][..., None] + self.place_pixels

    def _draw(self, state: State, place: Tensor, draws: Tensor) -> None:
        """Pastes the best part at `place` (B, 1) of the images that `draws` (B, 1)."""
        pixels = self._pixels_of(place)[:, 0]
        before = state.canvas.gather(1, pixels)
        part = self.parts[state.what.gather(1, place)[:, 0]]
        state.canvas.scatter_(1, pixels, torch.maximum(before, part).where(draws, before))
        state.used.scatter_(1, place, state.used.gather(1, place) | draws)
        state.top.masked_fill_(state.used, -torch.inf)

    def _score_around(self, state: State, place: Tensor, draws: Tensor) -> None:
        """Scores the places that share a pixel with `place` (B, 1), where it was drawn."""
        around = self.around[place.clamp(max=self.grid.places - 1)[:, 0]]  # (B, M)
        pixels = self._pixels_of(around).flatten(1)
        patch, canvas = (
            values.gather(1, pixels).view(*around.shape, -1).flatten(0, 1).t()
            for values in (state.image, state.canvas)
        )
        gain, part = (found.view_as(around) for found in best_rows(canvas_gain(self.parts, patch, canvas)))
        open_ = draws & ~state.used.gather(1, around)
        state.top.scatter_(1, around, gain.where(open_, state.top.gather(1, around)))
        state.what.scatter_(1, around, part.where(open_, state.what.gather(1, around)))
