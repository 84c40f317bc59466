"""AIR (Attend, Infer, Repeat; Eslami et al., NeurIPS 2016) infers presence, where and what of each object.

Presence is 1 for the first n steps and then 0. T is small, so this code sums over n exactly; the authors use
the score function with a learned baseline (NVIL). This code draws where and what as if all T objects were
present, which does not change the bound, and weights each ELBO term by q(n|x, draws).

Other differences from the paper (section 3 and its multi-MNIST experiment):
- Objects add to the likelihood's parameters of a learned background, which works for every likelihood and for
  colour images. In the paper, objects add to the pixel means of a Gaussian of fixed width.
- p(n), which is any distribution over 0 to T, and p(where) are learned, not fixed or annealed by hand.
- A window is a square (Jaderberg et al. 2015) with a scale, which is its side as a share of the image's side,
  at least LEAST_SCALE, and a centre (x, y) in [-1, 1]. Interpolation is bilinear, with 0 outside the image.
- Sizes are chosen for 28 x 28 images (`baseline.latents`, `baseline.glimpse`), and activations are SiLU.
- The project's training loop sets optimizer, schedule and clipping.

Shapes: B images, T steps, Z Gaussians per object, W features of an image, C channels, Q likelihood parameters
per pixel, H x W image, N x N window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.baselines.latents import PriorDraws, gaussian, standard_normal
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.noise import Dropout, Noise
from npdraw_dist.nn.blocks import ExactLinear, ExactLSTMCell, exactly
from npdraw_dist.nn.generative import Importance
from npdraw_dist.nn.relaxations import Gaussian, categorical_sample, kl_bernoulli

LEAST_SCALE = 0.1  # least scale of a window; a smaller window would get no gradient to grow


def stopping_log_prob(logits: Tensor) -> Tensor:
    """Logits (..., T) that step t draws if all earlier steps drew -> log p(n), n = 0 to T, (..., T + 1)."""
    goes_on = F.pad(F.logsigmoid(logits).cumsum(-1), (1, 0))
    stops = F.pad(F.logsigmoid(-logits), (0, 1))  # after T steps, drawing always stops
    return goes_on + stops


@dataclass(frozen=True)
class Objects:
    """T objects, drawn from q as if all were present. All fields but outputs are (B, T), in nats.

    presence: logits. log_ratio: log p - log q of where and what. outputs: (B, T + 1, Q, H, W), likelihood
    parameters of images with the first n objects, for n = 0 to T.
    """

    presence: Tensor
    log_ratio: Tensor
    kl_where: Tensor
    kl_what: Tensor
    outputs: Tensor


class AIR(Baseline):
    """An LSTM infers each object's presence and *where*; an MLP infers *what* from the object's window."""

    title = "AIR"
    default_latents = 20
    default_steps = 3

    has_regions: ClassVar[bool] = False

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        channels, height, width = spec.image_shape
        self.outputs = self.likelihood.parameters_per_pixel
        pixels = spec.glimpse**2
        # The layers are exact (`nn.blocks`), since rounding errors would move the windows.
        self.look = nn.Sequential(ExactLinear(channels * height * width, spec.hidden), _silu(spec))
        self.recurrent = ExactLSTMCell(spec.hidden + 3 + spec.latents, spec.hidden)
        self.presence = ExactLinear(spec.hidden, 1)
        self.where = ExactLinear(spec.hidden, 6)
        self.what = _mlp(channels * pixels, 2 * spec.latents, spec)
        self.object = _mlp(spec.latents, self.outputs * pixels, spec)
        # Prior and posterior start equal, with many objects and narrow distributions of windows.
        sure = torch.tensor([0.0, 0.0, 0.0, -1.0, -1.0, -1.0])  # means, then log standard deviations
        self.prior_presence = nn.Parameter(torch.full((spec.steps,), 2.0))
        self.prior_where = nn.Parameter(sure.clone())
        self.background = nn.Parameter(self.blank().view(-1, 1, 1).clone())
        with torch.no_grad():
            self.where.weight.mul_(0.1)
            self.where.bias.copy_(sure)
            self.presence.bias.fill_(2.0)

    def embed(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> features (B, W) of the whole image, which every step sees."""
        return self.look(x.flatten(1))

    def infer(self, x: Tensor, embedded: Tensor, generator: Noise, temperature: float = 1.0) -> Objects:
        """Draws T objects for x (B, C, H, W). Temperature 0 takes the means of q instead."""
        batch, size = len(x), self.spec.glimpse
        state: tuple[Tensor, Tensor] | None = None
        last = x.new_zeros(batch, 3 + self.spec.latents)
        canvas = self.background.expand(batch, -1, *x.shape[2:])
        outputs, found = [canvas], []
        for _ in range(self.spec.steps):
            state = self.recurrent(torch.cat([embedded, last], 1), state)
            q_where = gaussian(self.where(state[0]))
            where = q_where.sample(generator, temperature)
            window = self.window(where)
            q_what = gaussian(self.what(cut(x, window, size).flatten(1)))
            what = q_what.sample(generator, temperature)
            canvas = canvas + self._painted(what, window)
            outputs.append(canvas)
            last = torch.cat([where, what], 1)
            p_where, p_what = self._prior_where(batch), standard_normal(what)
            ratio = p_where.log_prob(where) - q_where.log_prob(where)
            ratio = ratio + p_what.log_prob(what) - q_what.log_prob(what)
            logit = self.presence(state[0])[:, 0]
            found.append((logit, ratio, q_where.kl(p_where), q_what.kl(p_what)))
        presence, ratios, kl_where, kl_what = (torch.stack(values, 1) for values in zip(*found, strict=True))
        return Objects(presence, ratios, kl_where, kl_what, torch.stack(outputs, 1))

    def window(self, where: Tensor) -> Tensor:
        """Maps the Gaussian where (..., 3) to a window (scale, x, y) whose centre lies in the image."""
        scale = LEAST_SCALE + (1 - LEAST_SCALE) * torch.sigmoid(where[..., :1])
        return torch.cat([scale, torch.tanh(where[..., 1:])], -1)

    def _prior_where(self, batch: int) -> Gaussian:
        return gaussian(self.prior_where.expand(batch, -1))

    def _painted(self, what: Tensor, window: Tensor) -> Tensor:
        """The values (B, Q, H, W) that an object adds to the likelihood parameters."""
        size = self.spec.glimpse
        glimpse = self.object(what).view(-1, self.outputs, size, size)
        return put(glimpse, window, *self.spec.image_shape[1:])

    def loss_parts(self, x: Tensor, generator: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Estimates as in `Baseline`, from one draw of where and what, with an exact sum over n."""
        found = self.infer(x, self.embed(x), generator)
        log_q = stopping_log_prob(found.presence)
        log_p = stopping_log_prob(self.prior_presence)
        chance = log_q.exp()
        present = F.logsigmoid(found.presence).cumsum(1).exp()  # q(n >= t)
        fits = [self.likelihood.log_prob(output, x) for output in found.outputs.unbind(1)]
        return (chance * torch.stack(fits, 1)).sum(1), {
            "kl_presence": (chance * (log_q - log_p)).sum(1),
            "kl_where": (present * found.kl_where).sum(1),
            "kl_what": (present * found.kl_what).sum(1),
        }

    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        """Draws n, where and what. The KL of a step counts only if all earlier steps drew."""
        found = self.infer(x, embedded, generator)
        log_q = stopping_log_prob(found.presence)
        n = categorical_sample(log_q, generator)
        rows = torch.arange(len(x), device=x.device)
        reconstruction = self.likelihood.log_prob(found.outputs[rows, n], x)
        step = torch.arange(self.spec.steps, device=x.device)
        drawn, reached = step < n[:, None], step <= n[:, None]
        log_p = stopping_log_prob(self.prior_presence)
        log_ratio = log_p[n] - log_q[rows, n] + torch.where(drawn, found.log_ratio, 0.0).sum(1)
        prior = self.prior_presence.expand_as(found.presence)
        chance = torch.sigmoid(found.presence) * reached
        kl = {
            "kl_presence": (reached * kl_bernoulli(found.presence, prior)).sum(1),
            "kl_where": (chance * found.kl_where).sum(1),
            "kl_what": (chance * found.kl_what).sum(1),
        }
        return Importance(reconstruction + log_ratio, reconstruction, kl)

    @torch.no_grad()
    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """Returns active_objects (B,), the expected number of objects under q."""
        found = self.infer(x, self.embed(x), None, temperature=0.0)
        return {"active_objects": F.logsigmoid(found.presence).cumsum(1).exp().sum(1)}

    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        height, width = self.spec.image_shape[1:]
        prior = stopping_log_prob(self.prior_presence).expand(n, -1)
        count = categorical_sample(prior / temperature, generator)
        canvas = self.background.expand(n, -1, height, width)
        canvases, windows, whats, empty = [], [], [], torch.zeros(n, self.spec.latents, device=self.device)
        for step in range(self.spec.steps):
            window = self.window(self._prior_where(n).sample(generator, temperature))
            what = standard_normal(empty).sample(generator, temperature)
            present = (step < count)[:, None, None, None]
            canvas = canvas + torch.where(present, self._painted(what, window), 0.0)
            canvases.append(canvas)
            windows.append(window)
            whats.append(what)
        drawn = torch.arange(self.spec.steps, device=self.device) < count[:, None]
        codes = {"count": count, "where": torch.stack(windows, 1), "what": torch.stack(whats, 1)}
        return PriorDraws(torch.stack(canvases), drawn, box(codes["where"], height, width), codes)


def _mlp(inputs: int, outputs: int, spec: BaselineSpec) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, spec.hidden), _silu(spec), ExactLinear(spec.hidden, outputs))


def _silu(spec: BaselineSpec) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), Dropout(spec.dropout))


def cut(image: Tensor, window: Tensor, size: int) -> Tensor:
    """Cuts the window (B, 3) out of image (B, C, H, W), scaled to (B, C, N, N)."""
    scale, x, y = window.unbind(1)
    grid = _grid(scale, x, y, (len(image), image.shape[1], size, size))
    return F.grid_sample(image, grid, align_corners=False)


def put(glimpse: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """Inverts `cut`: puts glimpse (B, C, N, N) into the window (B, 3) of an image (B, C, H, W) of zeros."""
    scale, x, y = window.unbind(1)
    grid = _grid(1 / scale, -x / scale, -y / scale, (len(glimpse), glimpse.shape[1], height, width))
    return F.grid_sample(glimpse, grid, align_corners=False)


def _grid(scale: Tensor, x: Tensor, y: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale, zero, x], 1), torch.stack([zero, scale, y], 1)]
    with exactly(scale):  # in float32, since rounding errors would move the window
        return F.affine_grid(torch.stack(rows, 1), list(shape), align_corners=False)


def box(window: Tensor, height: int, width: int) -> Tensor:
    """window (..., 3) -> top, left and side in pixels, (..., 3); scale is a share of the longer side."""
    scale, x, y = window.unbind(-1)
    side = scale * max(height, width)
    return torch.stack([(y + 1) / 2 * height - side / 2, (x + 1) / 2 * width - side / 2, side], -1)
