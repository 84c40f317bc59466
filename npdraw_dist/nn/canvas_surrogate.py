"""Relaxed training as the authors' released code does it (`vae.surrogate canvases`).

The prior is given the canvases with mixtures of parts that the decoder sees, not the likeliest parts. So the
KL has a gradient in what is drawn at earlier steps. *where* is drawn hard and has no gradient of the
reconstruction: theirs passes through filters of variance 0.001 at whole pixels, whose derivative is 0 in
float32. The KL of *what* and *where* counts at steps whose draw of *whether* is 1. Teacher forcing replaces
*what* and *where* by the parse, and leaves *whether* to q.
Shapes: B batch, T steps, K parts, L places, C channels, P patch side, h x w canvas, H x W image.
"""

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.annealing import teacher_chance
from npdraw_dist.nn.canvas_prior import CanvasPrior
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.precision import exactly
from npdraw_dist.nn.relaxations import categorical_sample, one_hot_like, total_kl
from npdraw_dist.nn.steps import StepLogits, kl_steps


class CanvasObjective(VAEObjective):
    """`VAEObjective` with the authors' surrogate. It is no bound."""

    def _relaxed(
        self, x: Tensor, q: StepLogits, parse: PartSequence, done: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        assert isinstance(model.prior, CanvasPrior)
        what, gate, where = self._choices(q, parse, done, generator)
        shown = what.detach().sum(-1) > 0.5  # a forced step without a part in the parse shows nothing
        z = PartSequence((gate.detach() > 0.5) & shown, where, what.argmax(-1))
        canvases = soft_canvases(model.bank_parts, what * gate[..., None], where, model.grid)
        found = model.reconstruct_from(canvases[:, -1], x, generator)
        p = model.prior.given(canvases, z).float32()
        parts = {name: value.sum(1) for name, value in kl_steps(q, p, gate.detach()).items()} | found.kl
        kl = total_kl(parts)
        metrics = {"surrogate": found.log_p - kl, "reconstruction": found.log_p, **parts}
        return self.config.beta * kl - found.log_p, metrics

    def _choices(
        self, q: StepLogits, parse: PartSequence, done: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A draw of q: *what* as weights (B, T, K), *whether* (B, T) and *where* (B, T)."""
        what, gate = self._soft_choices(q, done, generator)
        where = parse.where if q.where is None else categorical_sample(q.where, generator)
        teacher = teacher_chance(self.config, done)
        forced = torch.rand(len(gate), generator=generator, device=gate.device) < teacher
        given = one_hot_like(what, parse.what) * parse.whether[..., None]
        what = torch.where(forced[:, None, None], given, what)
        return what, gate, torch.where(forced[:, None], parse.where, where)


def soft_canvases(bank: Tensor, what: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """The canvas after each step, (B, T, C, h, w), differentiable in the weights `what` (B, T, K) >= 0.

    bank (K, C, P, P), where (B, T). The weights mix ink: a smaller sum is nearer the background. The
    gradient of a pixel goes to the step that is visible there.
    """
    batch, steps, _ = what.shape
    channels, area = bank.shape[1], grid.padded_height * grid.padded_width
    with exactly(what):  # the decoder sees the canvas
        parts = (what @ grid.ink(bank).flatten(1)).view(batch, steps, channels, -1)
    index = grid.pixels_on(where.device)[where][:, :, None].expand_as(parts)
    pasted = parts.new_zeros(batch, steps, channels, area).scatter(3, index, parts)
    canvases = pasted.cummax(1).values
    canvases = canvases.view(batch, steps, channels, grid.padded_height, grid.padded_width)
    return grid.ink(grid.crop(canvases))
