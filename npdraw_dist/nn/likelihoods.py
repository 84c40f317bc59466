"""The likelihoods p(x|z) of an image given the decoder's output (paper section 3.2).

Images x are in [0, 1]. Logistic likelihoods use y = 2x - 1, where the bin of a grey value is 2/255 wide.
Shapes: B batch, C channels, Q decoder outputs per pixel, M mixture components, H x W image.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from npdraw_dist.core.images import to_float
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.nn.relaxations import categorical_sample

HALF_BIN = 1 / 255
# exp(-7) is a quarter of HALF_BIN, exp(7) is 500 times the range of y. Scales outside would fit no better.
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 7.0

# Before training, a Bernoulli has the logit CANVAS_GAIN where the canvas is 1. A logistic has the canvas's
# value as its location, and the log-scale CANVAS_LOG_SCALE. The components of a mixture share this location,
# but their log-scales span CANVAS_LOG_SCALES. So the components differ from the first training step on, and
# wide components limit the loss where the canvas is wrong.
CANVAS_GAIN = 3.0
CANVAS_LOG_SCALE = -2.5
CANVAS_LOG_SCALES = (-4.0, -1.0)


class CanvasStart(NamedTuple):
    """Weight (Q, C) and bias (Q,) that map a canvas in [-1, 1] to outputs whose mean image resembles it."""

    weight: Tensor
    bias: Tensor


class Likelihood(ABC):
    """p(x|z) of images with `channels` channels. components: number of components, used only by a mixture."""

    def __init__(self, channels: int, components: int = 10) -> None:
        self.channels, self.components = channels, components

    @property
    def parameters_per_pixel(self) -> int:
        """Q, the number of channels of the decoder's output."""
        return len(self.canvas_start().bias)

    @abstractmethod
    def canvas_start(self) -> CanvasStart:
        """The map from canvas to output that initialises the decoder's last layer."""

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """output (B, Q, H, W), x (B, C, H, W) in [0, 1] -> log p(x|z), (B,) nats."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """output (B, Q, H, W) -> expected image (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def sample(self, output: Tensor, generator: Noise) -> Tensor:
        """output (B, Q, H, W) -> image (B, C, H, W) drawn from p(x|z), with values that the data can have."""


class Bernoulli(Likelihood):
    """A Bernoulli for each value of x. For 0 < x < 1, `log_prob` is the mean over binary draws of mean x."""

    def canvas_start(self) -> CanvasStart:
        return CanvasStart(CANVAS_GAIN * torch.eye(self.channels), torch.zeros(self.channels))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(output.float(), x, reduction="none").sum((1, 2, 3))

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output.float())

    def sample(self, output: Tensor, generator: Noise) -> Tensor:
        chance = self.mean(output)
        return (uniform(chance.shape, generator, chance) < chance).float()


class _LogProb(torch.autograd.Function):
    """log p(x|z) of a logistic likelihood, with the derivative computed beside it.

    Autograd would keep ten planes of the size of the parameters, and write as many in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, likelihood: "_Logistic") -> Tensor:
        slope = torch.empty_like(output) if ctx.needs_input_grad[0] else None
        log_p = likelihood.differentiated(output, x, slope)
        if slope is not None:
            ctx.save_for_backward(slope)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient.view(-1, 1, 1, 1), None, None


class _Logistic(Likelihood):
    """A likelihood with its derivative."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        found: Tensor = _LogProb.apply(output.float(), x, self)  # type: ignore[no-untyped-call]
        return found

    @abstractmethod
    def differentiated(self, output: Tensor, x: Tensor, slope: Tensor | None) -> Tensor:
        """output (B, Q, H, W), x (B, C, H, W) -> log p(x|z), (B,). Writes its derivative to `slope`."""


class DiscretizedLogistic(_Logistic):
    """A logistic for each value of x, integrated over the value's bin (Kingma et al. 2016, appendix C)."""

    START_LOG_SCALE = -1.0

    def canvas_start(self) -> CanvasStart:
        bias = torch.zeros(2, self.channels)
        bias[1] = _raw_scale(torch.tensor(CANVAS_LOG_SCALE), self.START_LOG_SCALE)
        return CanvasStart(torch.eye(2 * self.channels, self.channels), bias.flatten())

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale, each (B, C, H, W)."""
        location, raw = output.float().chunk(2, 1)
        return location, _log_scale(raw, self.START_LOG_SCALE)

    def differentiated(self, output: Tensor, x: Tensor, slope: Tensor | None) -> Tensor:
        location, raw = output.chunk(2, 1)
        by = None if slope is None else _Slopes(*slope.chunk(2, 1))
        return _log_mass(2 * x - 1, location, raw, self.START_LOG_SCALE, by).sum((1, 2, 3))

    def mean(self, output: Tensor) -> Tensor:
        return (_clipped_mean(*self._split(output)) + 1) / 2

    def sample(self, output: Tensor, generator: Noise) -> Tensor:
        return (_draw(*self._split(output), generator) + 1) / 2


class _Mixture(NamedTuple):
    """logits: (B, M, H, W). location, log_scale: (B, C, M, H, W). coupling: (B, C(C-1)/2, M, H, W)."""

    logits: Tensor
    location: Tensor
    log_scale: Tensor
    coupling: Tensor

    def located(self, channel: int, earlier: list[Tensor]) -> Tensor:
        """The location of `channel`, (B, M, H, W), shifted by the values of the earlier channels."""
        location = self.location[:, channel]
        first = channel * (channel - 1) // 2
        for index, y in enumerate(earlier):
            location = location + self.coupling[:, first + index] * y
        return location


class DiscretizedLogisticMixture(_Logistic):
    """A mixture of discretised logistics, in which all channels of a pixel share a component.

    A channel's location is linear in the channels before it (PixelCNN++, Salimans et al. 2017, section 2.2).
    If the decoder's output is zero, the locations divide [-1, 1] evenly, so p(x|z) is nearly uniform.
    """

    START_LOG_SCALE = -2.0

    def canvas_start(self) -> CanvasStart:
        channels, components = self.channels, self.components
        each = 1 + 2 * channels + channels * (channels - 1) // 2  # number of parameters of a component
        weight = torch.zeros(each, components, channels)
        bias = torch.zeros(weight.shape[:2])
        weight[1 : 1 + channels] = torch.eye(channels)[:, None]  # logits come first, then locations
        bias[1 : 1 + channels] = -self._spread()
        scales = torch.linspace(*CANVAS_LOG_SCALES, components)
        bias[1 + channels : 1 + 2 * channels] = _raw_scale(scales, self.START_LOG_SCALE)
        return CanvasStart(weight.flatten(0, 1), bias.flatten())

    def _spread(self, device: torch.device | None = None) -> Tensor:
        """The components' locations if the decoder's output is zero, (M,)."""
        return (torch.arange(self.components, device=device) + 0.5) * 2 / self.components - 1

    def _split(self, output: Tensor) -> _Mixture:
        batch, _, height, width = output.shape
        table = output.float().view(batch, -1, self.components, height, width)
        pairs = self.channels * (self.channels - 1) // 2
        logits, location, raw, coupling = torch.split(table, [1, self.channels, self.channels, pairs], 1)
        location = location + self._spread(output.device).view(-1, 1, 1)
        return _Mixture(logits[:, 0], location, _log_scale(raw, self.START_LOG_SCALE), torch.tanh(coupling))

    def differentiated(self, output: Tensor, x: Tensor, slope: Tensor | None) -> Tensor:
        channels = self.channels
        parts = [1, channels, channels, channels * (channels - 1) // 2]
        table = output.unflatten(1, (-1, self.components))  # (B, sum of parts, M, H, W)
        logits, location, raw, coupling = table.split(parts, 1)
        y = (2 * x - 1).unsqueeze(2)
        location = location + self._spread(output.device).view(-1, 1, 1)
        coupling = coupling.tanh()
        pairs = [(channel, earlier) for channel in range(channels) for earlier in range(channel)]
        for pair, (channel, earlier) in enumerate(pairs):
            location[:, channel].addcmul_(coupling[:, pair], y[:, earlier])
        if slope is None:
            mass = _log_mass(y, location, raw, self.START_LOG_SCALE)
            return (logits[:, 0].log_softmax(1) + mass.sum(1)).logsumexp(1).sum((1, 2))
        by_logits, by_location, by_raw, by_coupling = slope.unflatten(1, (-1, self.components)).split(
            parts, 1
        )
        mass = _log_mass(y, location, raw, self.START_LOG_SCALE, _Slopes(by_location, by_raw))
        log_weight = logits[:, 0].log_softmax(1)
        joint = mass.sum(1).add_(log_weight)
        posterior = joint.softmax(1)  # p(component | x, z) of each pixel
        torch.sub(posterior, log_weight.exp_(), out=by_logits[:, 0])
        by_location.mul_(posterior.unsqueeze(1))
        by_raw.mul_(posterior.unsqueeze(1))
        rise = coupling.square_().neg_().add_(1)  # the derivative of tanh
        for pair, (channel, earlier) in enumerate(pairs):
            torch.mul(by_location[:, channel], y[:, earlier], out=by_coupling[:, pair]).mul_(rise[:, pair])
        return joint.logsumexp(1).sum((1, 2))

    def mean(self, output: Tensor) -> Tensor:
        """See `Likelihood.mean`. Uses the means of earlier channels, which is exact unless values clip."""
        mixture = self._split(output)
        means: list[Tensor] = []
        for channel in range(self.channels):
            location = mixture.located(channel, means)
            means.append(_clipped_mean(location, mixture.log_scale[:, channel]))
        weights = mixture.logits.softmax(1).unsqueeze(1)
        return ((weights * torch.stack(means, 1)).sum(2).clamp(-1, 1) + 1) / 2

    def sample(self, output: Tensor, generator: Noise) -> Tensor:
        mixture = self._split(output)
        index = categorical_sample(mixture.logits.movedim(1, -1), generator)[:, None, None]  # (B, 1, 1, H, W)
        chosen = _Mixture(
            mixture.logits,
            *(table.gather(2, index.expand(-1, table.shape[1], -1, -1, -1)) for table in mixture[1:]),
        )
        y: list[Tensor] = []
        for channel in range(self.channels):
            y.append(_draw(chosen.located(channel, y), chosen.log_scale[:, channel], generator))
        return (torch.cat(y, 1) + 1) / 2


CLASSES: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "logistic": DiscretizedLogistic,
    "logistic_mixture": DiscretizedLogisticMixture,
}


def make_likelihood(name: str, channels: int, components: int = 10) -> Likelihood:
    return CLASSES[name](channels, components)


def binarized(images: Tensor, how: str, generator: Noise) -> Tensor:
    """uint8 (B, C, H, W) -> x in [0, 1] for `none`, Bernoulli(x) for `dynamic`, x > 0.5 for `threshold`."""
    x = to_float(images)
    if how == "dynamic":
        return (uniform(x.shape, generator, x) < x).float()
    return (x > 0.5).float() if how == "threshold" else x


# The softplus of WIDEST is MAX_LOG_SCALE - MIN_LOG_SCALE.
WIDEST = math.log(math.expm1(MAX_LOG_SCALE - MIN_LOG_SCALE))


def _offset(start: float) -> float:
    """The number whose softplus is start - MIN_LOG_SCALE."""
    return math.log(math.expm1(start - MIN_LOG_SCALE))


def _log_scale(raw: Tensor, start: float) -> Tensor:
    """Decoder output -> log-scale, 0 -> `start`. Smooth at the lower bound, because training reaches it."""
    return MIN_LOG_SCALE + F.softplus((raw + _offset(start)).clamp(max=WIDEST))


def _raw_scale(log_scale: Tensor, start: float) -> Tensor:
    """The decoder output for which `_log_scale` gives `log_scale`."""
    return torch.log(torch.expm1(log_scale - MIN_LOG_SCALE)) - _offset(start)


class _Slopes(NamedTuple):
    """Where `_log_mass` writes its derivatives by location and raw scale, each with the shape of the mass."""

    location: Tensor
    raw: Tensor


def _log_mass(
    y: Tensor, location: Tensor, raw: Tensor, start: float, slopes: _Slopes | None = None
) -> Tensor:
    """The log-probability of the bin around y in [-1, 1], computed without numerical cancellation.

    With the bin's standardised ends a > -b it is logsigmoid(a) + logsigmoid(b) + log(1 - exp(-a - b)). At the
    lowest value b is infinite, and at the highest a. start: the log-scale of a raw scale of 0. Few planes of
    memory are written, since these and not the arithmetic decide the speed.
    """
    above = torch.where(y > 1 - HALF_BIN, math.inf, HALF_BIN)
    below = torch.where(y < HALF_BIN - 1, math.inf, HALF_BIN)
    # exp(-softplus(w)) is sigmoid(-w): the inverse scale needs no logarithm.
    w = (raw + _offset(start)).clamp_(max=WIDEST)
    inverse = w.neg().sigmoid_().mul_(math.exp(-MIN_LOG_SCALE))
    distance = y - location
    a = (distance + above).mul_(inverse)
    b = (below - distance).mul_(inverse)
    inside = (inverse * (above + below)).neg_().expm1_().neg_()
    mass = F.logsigmoid(a).add_(F.logsigmoid(b)).add_(inside.log())
    if slopes is not None:
        a, b = a.neg_().sigmoid_(), b.neg_().sigmoid_()
        difference = torch.sub(b, a, out=slopes.location)
        # minus the derivative by log(inverse), without the factor -inverse
        by_scale = inside.reciprocal_().sub_(1).mul_(2).add_(a).add_(b).mul_(-HALF_BIN)
        by_scale.addcmul_(difference, distance).mul_(inverse)
        torch.mul(by_scale, w.sigmoid().masked_fill_(w >= WIDEST, 0.0), out=slopes.raw)
        difference.mul_(inverse)
    return mass


def _clipped_mean(location: Tensor, log_scale: Tensor) -> Tensor:
    """E[clip(y, -1, 1)] of the logistic, which is 1 minus the integral of its CDF over [-1, 1]."""
    scale, inverse = torch.exp(log_scale), torch.exp(-log_scale)
    upper, lower = F.softplus((1 - location) * inverse), F.softplus((-1 - location) * inverse)
    return (1 - scale * (upper - lower)).clamp(-1, 1)


def _draw(location: Tensor, log_scale: Tensor, generator: Noise) -> Tensor:
    """A draw of the discretised logistic in [-1, 1], on the grid of the 256 values."""
    noise = torch.logit(uniform(location.shape, generator, location), eps=1e-7)
    y = (location + torch.exp(log_scale) * noise).clamp(-1, 1)
    return torch.round((y + 1) * 127.5) / 127.5 - 1
