"""Settings of the grid of places. Symbols of the paper: P patch side."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from npdraw_dist.config.section import Section
from npdraw_dist.core.grid_sizes import GridSizes

if TYPE_CHECKING:
    from npdraw_dist.core.grid import Grid

Padding = Literal["end", "centred"]
Background = Literal["black", "white"]


class GridConfig(Section):
    patch: PositiveInt = Field(5, description="P, side of a part in canvas pixels")
    stride: PositiveInt = Field(5, description="distance of two places in canvas pixels, at most P")
    downscale: PositiveInt = Field(1, description="image side / canvas side")
    padding: Padding = Field(
        "end", description="places hang over the right and lower edge, or centred, as the authors' do"
    )
    background: Background = Field(
        "black", description="the canvas where nothing is drawn; white for dark or coloured things on white"
    )

    def sizes_of(self, image_shape: tuple[int, int, int]) -> GridSizes:
        """The sizes of the canvas of images (C, H, W). Raises ValueError if they do not fit."""
        _, height, width = image_shape
        scale = self.downscale
        if height % scale or width % scale:
            raise ValueError(f"grid.downscale {scale} does not divide a {height}x{width} image")
        centred, background = self.padding == "centred", 1.0 if self.background == "white" else 0.0
        return GridSizes(height // scale, width // scale, self.patch, self.stride, centred, background)

    def of_canvas(self, image_shape: tuple[int, int, int]) -> "Grid":
        """The places of the canvas of images (C, H, W). Raises ValueError if the sizes do not fit."""
        from npdraw_dist.core.grid import Grid  # imports torch, which takes seconds

        return Grid(**asdict(self.sizes_of(image_shape)))
