"""Chooses overlapping parts greedily, exactly and lazily, for a canvas that is the maximum of its parts.

Each step pastes the (place, part) that reduces the squared error most on the canvas drawn so far. A paste
changes only the gains of places that share a pixel with it. The new gains are not linear in the parts, but a
matrix product bounds them from above. So a place is scored only when its bound is the largest of its image.
Shapes: B batch, N (image, place) pairs, K parts, L places, M places around and including a place, C channels,
P patch side, D = C P P, S pixels of all channels of a padded image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.images import to_float
from npdraw_dist.core.parts import PartBank
from npdraw_dist.parse.cost import EmptyCanvasGain, best_rows, bound_coefficients, canvas_gain, windows


@dataclass
class State:
    """A batch while it is parsed. `top` is a place's best gain if `exact` is true, else an upper bound."""

    image: Tensor  # (B, S)
    canvas: Tensor  # (B, S)
    bounds: Tensor  # (B, 2, S): the coefficients p and s of each pixel
    top: Tensor  # (B, L + 1); -inf at used places; column L stands for all neighbours off the grid
    exact: Tensor  # (B, L + 1) bool
    what: Tensor  # (B, L + 1): the best part if exact
    used: Tensor  # (B, L + 1) bool
    gain: Tensor  # (B, L): gains of the used places


class GreedyChooser:
    """Chooses at most `steps` parts for each image, each with a gain of at least `min_gain` and above 0."""

    def __init__(self, bank: PartBank, grid: Grid, steps: int, min_gain: float) -> None:
        self.grid, self.steps, self.min_gain = grid, steps, min_gain
        self.empty = EmptyCanvasGain(bank, grid, min_gain)
        self.parts = bank.parts.flatten(1)  # (K, D)
        self.bound_weight = torch.cat([self.parts, -self.parts.square()], 1)  # (K, 2D)
        self.largest = self.brightest()
        self.channels = bank.channels
        reach = (grid.patch - 1) // grid.stride  # number of places on each side that overlap a place
        self.margin = reach * grid.stride
        self.size = (grid.padded_height + 2 * self.margin, grid.padded_width + 2 * self.margin)
        self._index(reach, bank.parts.device)

    def _index(self, reach: int, device: torch.device) -> None:
        """Computes flat pixel indices of each place, and of the area that it and its neighbours cover."""
        grid, (height, width) = self.grid, self.size
        corners = grid.padded_corners.to(device)
        self.area_corner = corners[:, 0] * width + corners[:, 1]  # (L,)
        self.place_corner = self.area_corner + self.margin * (width + 1)

        def square(planes: int, side: int) -> Tensor:
            plane = torch.arange(planes, device=device)[:, None, None] * (height * width)
            line = torch.arange(side, device=device)
            return (plane + line[:, None] * width + line).flatten()

        self.area_side = 2 * self.margin + grid.patch
        self.place_pixels = square(self.channels, grid.patch)  # (D,)
        self.area_pixels = square(2 * self.channels, self.area_side)
        step = torch.arange(-reach, reach + 1, device=device)
        row = torch.arange(grid.rows, device=device).repeat_interleave(grid.columns)[:, None, None]
        column = torch.arange(grid.columns, device=device).repeat(grid.rows)[:, None, None]
        row, column = row + step[:, None], column + step
        inside = (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
        self.around = torch.where(inside, row * grid.columns + column, grid.places).flatten(1)  # (L, M)

    def brightest(self) -> float:
        """An upper bound of the parts' pixel values, above 0."""
        return max(float(self.parts.max()), 1e-6)

    def choose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `DisjointChooser.choose`. The gain of a part is its gain on the canvas before it is pasted."""
        images = to_float(images) if images.dtype == torch.uint8 else images
        state = self.start(images)
        active = torch.arange(len(images), device=images.device)
        for step in range(self.steps):
            if step:
                self._score(state, active)
            gain, place = state.top[active].max(1)
            keep = self.worth(gain)
            active, place, gain = active[keep], place[keep], gain[keep]
            if len(active) == 0:
                break
            self._paste(state, active, place)
            state.gain[active, place] = gain
            if step + 1 < self.steps:
                self._bound(state, active, place)
        return self.result(state, images)

    def result(self, state: State, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The values that `choose` returns."""
        places = self.grid.places
        error = (self._inner(state.canvas) - images).square_().flatten(1).mean(1)
        used = state.used[:, :places]
        return used, state.what[:, :places] * used, state.gain, error

    def worth(self, gain: Tensor) -> Tensor:
        """Whether a part of this gain is drawn."""
        return (gain >= self.min_gain) & (gain > 0)

    def _inner(self, planes: Tensor) -> Tensor:
        """(B, S) -> (B, C, h, w), a view of the pixels on the canvas."""
        planes = planes.view(-1, self.channels, *self.size)
        top, left = self.margin + self.grid.top, self.margin + self.grid.left
        return planes[..., top : top + self.grid.height, left : left + self.grid.width]

    def start(self, images: Tensor) -> State:
        """The state before the first step, with empty canvases. images: (B, C, h, w)."""
        batch, places = len(images), self.grid.places
        pixels = self.channels * self.size[0] * self.size[1]
        image = images.new_zeros(batch, pixels)
        self._inner(image).copy_(images)
        # The canvas beyond the edge is as bright as the brightest part, so that no part gains or loses there.
        canvas = torch.full_like(image, self.largest)
        self._inner(canvas).zero_()
        bounds = images.new_zeros(batch, 2, pixels)
        bounds[:, 0] = 2 * image
        bounds[:, 1] = canvas == 0
        top = images.new_full((batch, places + 1), -torch.inf)
        what = top.new_zeros(top.shape, dtype=torch.int64)
        top[:, :places], what[:, :places], _ = self.empty.best(images)
        exact = torch.ones_like(top, dtype=torch.bool)
        used = torch.zeros_like(exact)
        used[:, places].fill_(True)
        return State(image, canvas, bounds, top, exact, what, used, images.new_zeros(batch, places))

    def _score(self, state: State, rows: Tensor) -> None:
        """Scores places exactly until the best gain of each image in `rows` is exact or not worth a part."""
        while True:
            bound, place = state.top[rows].max(1)
            loose = ~state.exact[rows, place] & self.worth(bound)
            rows, place = rows[loose], place[loose]
            if len(rows) == 0:
                return
            pixels = self._pixels(rows, place)
            patch, canvas = state.image.take(pixels), state.canvas.take(pixels)
            gain, part = best_rows(canvas_gain(self.parts, patch, canvas))
            state.top[rows, place], state.what[rows, place] = gain, part
            state.exact[rows, place] = True

    def _pixels(self, rows: Tensor, place: Tensor) -> Tensor:
        """Indices (D, N) in a flattened (B, S) of the pixels at `place` (N,) of the images `rows` (N,)."""
        pixels = self.channels * self.size[0] * self.size[1]
        return rows * pixels + self.place_corner[place] + self.place_pixels[:, None]

    def _paste(self, state: State, rows: Tensor, place: Tensor) -> None:
        pixels = self._pixels(rows, place)
        drawn = torch.maximum(state.canvas.take(pixels), self.parts[state.what[rows, place]].T)
        state.canvas.view(-1)[pixels] = drawn
        size = state.image.shape[1]
        p, s = bound_coefficients(state.image.take(pixels), drawn, self.largest)
        at = pixels + rows * size  # (B, 2, S) has twice as many entries per image as (B, S)
        bounds = state.bounds.view(-1)
        bounds[at], bounds[at + size] = p, s
        state.used[rows, place] = True
        state.top[rows, place] = -torch.inf

    def _bound(self, state: State, rows: Tensor, place: Tensor) -> None:
        """Bounds the gains of all places that share a pixel with `place` (N,) in the images `rows` (N,)."""
        grid, side = self.grid, self.area_side
        corner = rows * state.bounds[0].numel() + self.area_corner[place]
        index = corner[:, None] + self.area_pixels
        area = state.bounds.take(index).view(len(rows), 2 * self.channels, side, side)
        columns = windows(area, grid.patch, grid.stride).reshape(self.bound_weight.shape[1], -1)
        bound = (self.bound_weight @ columns).amax(0).view(len(rows), -1)  # (N, M)
        around = self.around[place]
        row = rows[:, None]
        state.top[row, around] = bound.masked_fill_(state.used[row, around], -torch.inf)
        state.exact[row, around] = False


class StaticGreedyChooser(GreedyChooser):
    """`GreedyChooser` for a GPU, with the same result.

    All shapes are fixed, so the host never waits for the GPU. Every image takes all T steps, and all
    neighbours of a pasted part are scored again.
    """

    @property
    def numbers_an_image(self) -> int:
        """Number of entries per image in the largest tensor."""
        return len(self.parts) * max(self.parts.shape[1] * self.around.shape[1], self.grid.places)

    def brightest(self) -> float:
        return 1.0  # the largest possible pixel, since finding the actual maximum would wait for the device

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
        """places (B, N) -> indices (B, N, D) in a row of S pixels. Place 0 replaces places off the grid."""
        inside = places.where(places < self.grid.places, 0)
        return self.place_corner[inside][..., None] + self.place_pixels

    def _draw(self, state: State, place: Tensor, draws: Tensor) -> None:
        """Pastes the best part at `place` (B, 1) in the images where `draws` (B, 1) is true."""
        pixels = self._pixels_of(place)[:, 0]
        before = state.canvas.gather(1, pixels)
        part = self.parts[state.what.gather(1, place)[:, 0]]
        state.canvas.scatter_(1, pixels, torch.maximum(before, part).where(draws, before))
        state.used.scatter_(1, place, state.used.gather(1, place) | draws)
        state.top.masked_fill_(state.used, -torch.inf)

    def _score_around(self, state: State, place: Tensor, draws: Tensor) -> None:
        """Scores places that share a pixel with `place` (B, 1), in images where `draws` (B, 1) is true."""
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
