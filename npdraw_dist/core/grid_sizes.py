"""Computes how many places a canvas has, and its padding.

The config uses this module to check settings. So, unlike `grid.py`, it must not import torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GridSizes:
    """Square places of side `patch`, `stride` apart, on a `height` x `width` canvas.

    An axis of W pixels has ceil((W - P) / stride) + 1 places; places are in raster order. Places can extend
    beyond the right and the lower edge, where they are cropped. With `centred`, they extend beyond all edges.
    The left (top) margin is then as wide as the right (lower) one or a pixel narrower, and the first corners
    can be negative. Sizes are in pixels.

    background: the value of a pixel without parts, 0.0 (black) or 1.0 (white). Parts combine by the maximum
    of their ink, |pixel - background|. Raises ValueError on sizes that do not cover the canvas.
    """

    height: int
    width: int
    patch: int
    stride: int
    centred: bool = False
    background: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.patch <= min(self.height, self.width):
            raise ValueError(
                f"grid.patch is {self.patch}; on a {self.height}x{self.width} canvas it must be "
                f"1 to {min(self.height, self.width)}"
            )
        if not 1 <= self.stride <= self.patch:
            raise ValueError(
                f"grid.stride is {self.stride}; it must be 1 to grid.patch ({self.patch}), or gaps are left"
            )
        if self.background not in (0.0, 1.0):
            raise ValueError(f"the background is {self.background}; 0.0 is black and 1.0 white")

    @property
    def rows(self) -> int:
        return -(-(self.height - self.patch) // self.stride) + 1

    @property
    def columns(self) -> int:
        return -(-(self.width - self.patch) // self.stride) + 1

    @property
    def places(self) -> int:
        """L, the number of places."""
        return self.rows * self.columns

    @property
    def padded_height(self) -> int:
        return (self.rows - 1) * self.stride + self.patch

    @property
    def padded_width(self) -> int:
        return (self.columns - 1) * self.stride + self.patch

    @property
    def top(self) -> int:
        """Number of rows of the padded canvas above the canvas."""
        return (self.padded_height - self.height) // 2 if self.centred else 0

    @property
    def left(self) -> int:
        """Number of columns of the padded canvas left of the canvas."""
        return (self.padded_width - self.width) // 2 if self.centred else 0

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """The padding for `F.pad`: columns left and right, then rows above and below."""
        right = self.padded_width - self.width - self.left
        return self.left, right, self.top, self.padded_height - self.height - self.top

    @property
    def disjoint(self) -> bool:
        """True if no two places share a pixel."""
        return self.stride == self.patch
