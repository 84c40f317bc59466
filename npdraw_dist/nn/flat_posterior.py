"""The posterior as the authors' released code has it: one vector for all steps (`vae.posterior flat`).

Written anew from their code's structure for MNIST, with GroupNorm where they have BatchNorm.
Shapes: B batch, C channels, H x W image, T steps, L places, K parts, W channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.blocks import group_norm
from npdraw_dist.nn.canvas_prior import two_layers
from npdraw_dist.nn.drawing import AlignedDrawing
from npdraw_dist.nn.precision import ExactLinear, at_least_float32, exactly
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import StepLogits

HALVINGS = 4
SIDE = 2  # of the last feature map, in cells: 28 pixels halved four times


class FlatTrunk(nn.Module):
    """Image (B, C, H, W) -> a vector (B, W): convolutions of stride 2 and a linear layer.

    In float32: in bfloat16 the signs before its ReLUs differ, and the gradient of few images has a cosine of
    0.998 with the exact one. It is a twentieth of a training step's operations.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, *[width] * (HALVINGS - 1)):
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), group_norm(width), nn.ReLU()]
        self.halve = nn.Sequential(*layers)
        self.out = nn.Linear(SIDE * SIDE * width, width)

    def forward(self, x: Tensor) -> Tensor:
        with exactly(x):
            h = self.halve(at_least_float32(x))
            if h.shape[-2:] != (SIDE, SIDE):
                h = F.interpolate(h, size=(SIDE, SIDE), mode="bilinear")
            return F.relu(self.out(h.flatten(1)))


class FlatPosterior(nn.Module):
    """Heads on the vector for the *whether* and *what* of all steps, and for *where* if it is drawn."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, self.steps, self.grid = spec.encoder_width, spec.steps, spec.grid
        self.trunk = FlatTrunk(spec.image_shape[0], width)
        self.whether = ExactLinear(width, spec.steps)
        self.where = None if spec.where_given else two_layers(width, spec.steps * spec.grid.places)
        self.what = two_layers(width, spec.steps * spec.parts)

    def set_bank(self, parts: Tensor) -> None:
        """The parts play no role in this network."""

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, W)."""
        features: Tensor = self.trunk(self.grid.ink(x))  # its convolutions pad with 0, the background's ink
        return features

    def forward(self, x: Tensor) -> StepLogits:
        """(B, C, H, W) in [0, 1] -> whether (B, T), where (B, T, L) or None, what (B, T, K)."""
        h = self.features(x)
        where = None if self.where is None else self.where(h).view(len(x), self.steps, -1)
        return StepLogits(self.whether(h), where, self.what(h).view(len(x), self.steps, -1))


class PlacedDrawing(AlignedDrawing):
    """T = L steps, each of which draws its place: q factorises over steps, and over their three choices.

    A place may be drawn twice, and step t need not draw place t. In a parse it does.
    """

    def sample(self, q: StepLogits, bank: Tensor, generator: torch.Generator | None) -> PartSequence:
        assert q.where is not None
        z = super().sample(q, bank, generator)
        return PartSequence(z.whether, categorical_sample(q.where, generator), z.what)

    def likeliest(self, q: StepLogits, bank: Tensor) -> PartSequence:
        assert q.where is not None
        return PartSequence(q.whether > 0, q.where.argmax(-1), q.what.argmax(-1))
