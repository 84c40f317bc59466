"""The dense reference of the bench, which computes the authors' formulation with our weights.

A part is a one-hot code times all K parts of the bank. Each step has its own canvas, on which products with
a filter bank for each axis paste the part. The prior convolves these canvases, or multiplies a one-hot code
of L * K values by a table. Attention is not fused. Sampling computes the whole prefix again at every step.
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas, W channels of a token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.prior import Prior
from npdraw_dist.nn.steps import StepLogits


def filter_banks(where: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """One-hot where (B, T, L) -> rows (B*T, P, h) and columns (B*T, P, w), which are 1 at a part's pixels."""
    pixel = torch.arange(grid.patch, device=where.device)[:, None]
    banks = []
    for axis, side in enumerate((grid.height, grid.width)):
        corner = grid.corners.to(where.device)[:, axis, None, None]
        table = (torch.arange(side, device=where.device) == corner + pixel).float()  # (L, P, side)
        banks.append((where.flatten(0, 1) @ table.flatten(1)).view(-1, grid.patch, side))
    return banks[0], banks[1]


def canvases(bank: Tensor, what: Tensor, gate: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """The canvas after each step, (B, T, C, h, w).

    bank: (K, C, P, P). what: weights (B, T, K). gate: (B, T). where: one-hot (B, T, L).
    """
    batch, steps, _ = what.shape
    written_out = what[..., None, None, None] * grid.ink(bank).permute(0, 2, 3, 1)  # (B, T, K, P, P, C)
    parts = (written_out.sum(2) * gate[..., None, None, None]).permute(0, 1, 4, 2, 3).flatten(0, 1)
    rows, columns = filter_banks(where, grid)
    pasted = rows.transpose(1, 2)[:, None] @ parts @ columns[:, None]  # (B*T, C, h, w)
    return grid.ink(pasted.view(batch, steps, *pasted.shape[1:]).cummax(1).values)


def render_steps(bank: Tensor, z: PartSequence, grid: Grid) -> Tensor:
    """The canvas after each step of z, (B, T, C, h, w)."""
    what, where = F.one_hot(z.what, len(bank)).float(), F.one_hot(z.where, grid.places).float()
    return canvases(bank, what, z.whether.float(), where, grid)


class ConvStem(nn.Module):
    """Renders and convolves the canvas and the map of covered pixels before each step; returns (B, T, W).

    The design is the authors' (paper section 3.1), with layers of our own.
    """

    bank_parts: Tensor

    def __init__(self, model: NPDraw) -> None:
        super().__init__()
        spec = model.spec
        channels, width = spec.image_shape[0], spec.prior.width
        self.grid = spec.grid
        self.register_buffer("bank_parts", model.bank_parts)
        self.cells = nn.Conv2d(channels + 1, width, spec.patch, spec.stride)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Linear(width * spec.grid.places, width)

    def forward(self, z: PartSequence) -> Tensor:
        canvas = render_steps(self.bank_parts, z, self.grid)
        covered = render_steps(torch.ones_like(self.bank_parts[:, :1]), z, self.grid.of_ink)
        seen = torch.cat([self.grid.ink(canvas), covered], 2)
        seen = F.pad(seen, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        h = F.silu(self.cells(self.grid.of_ink.pad(seen.flatten(0, 1))))
        h = F.silu(h + self.mix(h))
        return self.out(h.flatten(1)).view(*seen.shape[:2], -1)


class DensePrior(nn.Module):
    """Computes `prior` by dense products, with the same weights and the same distribution.

    stem: if given, replaces the running sum; the distribution then differs from that of `prior`.
    """

    def __init__(self, prior: Prior, stem: ConvStem | None = None) -> None:
        super().__init__()
        self.prior, self.stem = prior, stem

    @classmethod
    def of(cls, model: NPDraw, convolved: bool) -> "DensePrior":
        """The dense form of a model's prior. convolved: whether it gets a `ConvStem` with random weights."""
        assert isinstance(model.prior, Prior), "the bench has no preset of the authors' model"
        return cls(model.prior, ConvStem(model).to(model.device) if convolved else None)

    def forward(self, z: PartSequence, condition: None = None) -> StepLogits:
        return self.prior.logits(self.states(z), z.where)

    def states(self, z: PartSequence) -> Tensor:
        """The state h_t before each step, (B, T, W)."""
        prior = self.prior
        place, part = F.one_hot(z.where, prior.places).float(), F.one_hot(z.what, prior.parts).float()
        place, part = place * z.whether[..., None], part * z.whether[..., None]
        code = place[..., :, None] * part[..., None, :]  # (B, T, L, K)
        before = F.pad(self._embedded(code, part, place), (0, 0, 1, -1))
        if self.stem is None:
            canvas = F.pad(self._embedded(code.cumsum(1), part.cumsum(1), place.cumsum(1)), (0, 0, 1, -1))
        else:
            canvas = self.stem(z)
        nothing = F.pad(~z.whether, (1, -1))
        x = canvas + prior.last(before) + nothing[..., None] * prior.blank + prior.position[: z.steps]
        with sdpa_kernel(SDPBackend.MATH):  # plain products, no fused kernel
            for block in prior.blocks:
                x = block(x)
        return prior.norm(x)

    def _embedded(self, code: Tensor, part: Tensor, place: Tensor) -> Tensor:
        prior = self.prior
        added = code.flatten(2) @ prior.drawn.weights() + place @ prior.place.weight
        return added if prior.part is None else added + part @ prior.part.weight


@torch.no_grad()
def sample_prior(model: NPDraw, prior: DensePrior, n: int, generator: torch.Generator) -> PartSequence:
    """Draws n part sequences from `prior`; computes the whole prefix again at every step."""
    where = torch.zeros(n, model.prior.steps, dtype=torch.int64, device=model.device)
    whether, what = where.bool(), where.clone()
    for t in range(model.prior.steps):
        prefix = PartSequence(whether[:, : t + 1], where[:, : t + 1], what[:, : t + 1])
        step = model.prior.draw_step(prior.states(prefix)[:, t], t, generator)
        whether[:, t], where[:, t], what[:, t] = step
    z = PartSequence(whether, where, what)
    return z if model.spec.aligned else z.canonical()


def sample(model: NPDraw, prior: DensePrior, n: int, generator: torch.Generator) -> Tensor:
    """The mean images (n, C, H, W) of n draws of `prior`, as `model.sample` returns them."""
    z = sample_prior(model, prior, n, generator)
    return model.decode(render_steps(model.bank_parts, z, model.grid)[:, -1])


class DenseVAEObjective(VAEObjective):
    """`VAEObjective` with the dense prior, and with dense canvases for relaxed draws."""

    def __init__(self, *arguments: Any, convolved: bool = False) -> None:
        super().__init__(*arguments)
        assert isinstance(self.model, NPDraw)
        self.model.prior = DensePrior.of(self.model, convolved)  # type: ignore[assignment]

    def canvas(self, what: Tensor, gate: Tensor) -> Tensor:
        grid = self.model.grid
        where = torch.eye(grid.places, device=what.device).expand(len(what), -1, -1)
        return canvases(self.model.bank_parts, what, gate, where, grid)[:, -1]
