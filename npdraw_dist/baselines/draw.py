"""DRAW (Gregor, Danihelka, Graves, Rezende, Wierstra; ICML 2015), a recurrent VAE that adds to a canvas.

The canvas holds the likelihood's parameters; the error image is the image minus the likelihood's mean.
docs/compare.md has the flags for the paper's binarised MNIST. There are two differences from the paper. A
softmax normalises the filters, so that a filter far outside the image has a gradient. The project's training
loop sets the optimizer.
Shapes: B images, T steps, Z Gaussians per step, C channels, Q likelihood parameters per pixel, H x W image, N
filters per axis.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.baselines.latents import PriorDraws, gaussian, standard_normal
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.noise import Dropout, Noise
from npdraw_dist.nn.blocks import ExactLinear, ExactLSTMCell, at_least_float32, exactly
from npdraw_dist.nn.generative import Importance
from npdraw_dist.nn.relaxations import Gaussian

State = tuple[Tensor, Tensor]  # h and c of an LSTM, (B, width) each
EPSILON = 1e-8


class Window(NamedTuple):
    """An N x N grid of Gaussian filters (section 3.2), with centre and stride in pixels. Fields are (B,)."""

    row: Tensor
    column: Tensor
    stride: Tensor
    variance: Tensor
    log_gamma: Tensor

    @classmethod
    def of(cls, raw: Tensor, size: int, height: int, width: int) -> "Window":
        """A window from raw (B, 5), linear in the decoder's state (eq. 21-24). Pixels are numbered from 0."""
        column, row, log_variance, log_stride, log_gamma = raw.float().unbind(1)
        stride = (max(height, width) - 1) / max(size - 1, 1) * log_stride.exp()
        return cls(
            (height + 1) / 2 * (row + 1) - 1,
            (width + 1) / 2 * (column + 1) - 1,
            stride,
            log_variance.exp(),
            log_gamma,
        )

    def filters(self, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The filters' weights of rows (B, N, H) and columns (B, N, W), with sum 1 (eq. 19, 20, 25, 26)."""
        offset = torch.arange(size, device=self.stride.device) - (size - 1) / 2
        steps = offset * self.stride[:, None]
        return (
            _bank(self.row[:, None] + steps, self.variance, height),
            _bank(self.column[:, None] + steps, self.variance, width),
        )

    def box(self, size: int) -> Tensor:
        """Top, left and side, (B, 3), in pixels, of the square between the outermost filters."""
        side = self.stride * max(size - 1, 1)
        return torch.stack([self.row - side / 2, self.column - side / 2, side], 1)


def _bank(centres: Tensor, variance: Tensor, length: int) -> Tensor:
    """Gaussian filters (B, N, length) at centres (B, N)."""
    pixels = torch.arange(length, device=centres.device, dtype=centres.dtype)
    distance = (pixels - centres[..., None]).square()
    # With a softmax, a filter far outside the image still sums to 1, and its gradient can move it back.
    return torch.softmax(-distance / (2 * variance[:, None, None] + EPSILON), -1)


def read(image: Tensor, window: Window, size: int) -> Tensor:
    """Image x (B, C, H, W) -> the patch that the window reads, gamma F_Y x F_X^T (B, C, N, N) (eq. 27)."""
    rows, columns = window.filters(size, *image.shape[-2:])
    with exactly(image):
        patch = torch.einsum("bnh,bchw,bmw->bcnm", rows, at_least_float32(image), columns)
    return patch * window.log_gamma.exp()[:, None, None, None]


def write(patch: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Patch w (B, C, N, N) -> the image that the window writes, F_Y^T w F_X / gamma (B, C, H, W) (eq. 29)."""
    rows, columns = window.filters(patch.shape[-1], height, width)
    with exactly(patch):  # in float32, since these are parameters of the likelihood
        image = torch.einsum("bnh,bcnm,bmw->bchw", rows, at_least_float32(patch), columns)
    return image * torch.exp(-window.log_gamma)[:, None, None, None]


class DRAW(Baseline):
    """An encoder LSTM reads the image, and a decoder LSTM writes the canvas, both through windows."""

    title = "DRAW"
    default_latents = 10
    default_steps = 10

    has_regions: ClassVar[bool] = False

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        channels, outputs = spec.image_shape[0], self.likelihood.parameters_per_pixel
        seen = channels * spec.read**2
        written = outputs * spec.write**2
        self.encoder = ExactLSTMCell(2 * seen + spec.hidden, spec.hidden)
        self.posterior = ExactLinear(spec.hidden, 2 * spec.latents)
        self.decoder = ExactLSTMCell(spec.latents, spec.hidden)
        self.patch = ExactLinear(spec.hidden, written)
        self.dropout = Dropout(spec.dropout)
        self.read_window = ExactLinear(spec.hidden, 5)
        self.write_window = ExactLinear(spec.hidden, 5)
        # "c_0, h_0^enc, h_0^dec are initialised to learned biases" (section 2.1).
        self.first_canvas = nn.Parameter(self.blank().view(-1, 1, 1).clone())
        self.first_encoder = nn.Parameter(torch.zeros(2, spec.hidden))
        self.first_decoder = nn.Parameter(torch.zeros(2, spec.hidden))

    def steps(self, x: Tensor, generator: Noise) -> Iterator[tuple[Gaussian, Tensor, Tensor]]:
        """Yields q, a draw z (B, Z) and the canvas (B, Q, H, W) of each step for x (B, C, H, W), eq. 3-8."""
        canvas, decoder = self._start(len(x))
        encoder: State = (self.first_encoder[0].expand(len(x), -1), self.first_encoder[1].expand(len(x), -1))
        for _ in range(self.spec.steps):
            error = x - self.likelihood.mean(canvas)
            window = Window.of(self.read_window(decoder[0]), self.spec.read, *x.shape[-2:])
            seen = self.dropout(read(torch.cat([x, error], 1), window, self.spec.read).flatten(1))
            encoder = self.encoder(torch.cat([seen, decoder[0]], 1), encoder)
            q = gaussian(self.posterior(encoder[0]))
            z = q.sample(generator)
            decoder = self.decoder(z, decoder)
            canvas = canvas + self._write(decoder[0])
            yield q, z, canvas

    def _start(self, batch: int) -> tuple[Tensor, State]:
        _, height, width = self.spec.image_shape
        canvas = self.first_canvas.expand(batch, -1, height, width)
        return canvas, (self.first_decoder[0].expand(batch, -1), self.first_decoder[1].expand(batch, -1))

    def _write(self, state: Tensor) -> Tensor:
        """The values (B, Q, H, W) that a step adds to the canvas."""
        _, height, width = self.spec.image_shape
        patch = self.patch(self.dropout(state))
        patch = patch.view(-1, len(self.first_canvas), self.spec.write, self.spec.write)
        return write(patch, self._write_window(state), height, width)

    def _write_window(self, state: Tensor) -> Window:
        return Window.of(self.write_window(state), self.spec.write, *self.spec.image_shape[1:])

    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        steps = list(self.steps(x, generator))
        reconstruction = self.likelihood.log_prob(steps[-1][2], x)
        log_ratio = kl = torch.zeros_like(reconstruction)
        for q, z, _ in steps:
            p = standard_normal(z)
            log_ratio = log_ratio + p.log_prob(z) - q.log_prob(z)
            kl = kl + q.kl(p)
        return Importance(reconstruction + log_ratio, reconstruction, {"kl": kl})

    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        canvas, decoder = self._start(n)
        canvases, boxes, codes = [], [], []
        prior = standard_normal(torch.zeros(n, self.spec.latents, device=self.device))
        for _ in range(self.spec.steps):
            z = prior.sample(generator, temperature)
            decoder = self.decoder(z, decoder)
            canvas = canvas + self._write(decoder[0])
            canvases.append(canvas)
            codes.append(z)
            boxes.append(self._write_window(decoder[0]).box(self.spec.write))
        drawn = torch.ones(n, self.spec.steps, dtype=torch.bool, device=self.device)
        return PriorDraws(torch.stack(canvases), drawn, torch.stack(boxes, 1), {"z": torch.stack(codes, 1)})
