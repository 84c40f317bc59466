"""The latent canvas with gradients: soft *what*, gated by *whether*, in aligned order.

Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas.
"""

from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.paste import paste_aligned
from npdraw_dist.nn.precision import exactly


def soft_canvas(bank: Tensor, what: Tensor, gate: Tensor, grid: Grid) -> Tensor:
    """bank (K, C, P, P), what (B, L, K) weights, gate (B, L) -> (B, C, h, w). Step t is place t.

    The weights and the gate mix ink: a part half drawn is half way to the background.
    """
    with exactly(what):  # the decoder's last layer sees the canvas
        parts = (what @ grid.ink(bank).flatten(1)) * gate[..., None]
    return grid.ink(paste_aligned(parts.view(*gate.shape, *bank.shape[1:]), grid.of_ink))
