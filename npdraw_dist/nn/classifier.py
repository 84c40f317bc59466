"""A small image classifier. Frechet distances use its features if Inception weights are not available.

Shapes: B images in a batch, M in a data set, C channels, H x W pixels, D features, N classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from npdraw_dist.nn.blocks import group_norm
from npdraw_dist.nn.likelihoods import binarized

WIDTHS = (32, 64)
BATCH = 64
STANDARD = 2048  # number of training images from which `fit` standardizes the features
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.01


class Classifier(nn.Module):
    """Two strided convolutions, a layer of D features and a layer of N classes.

    `forward` returns the features. `standardize` sets their shift and scale, so that the features of
    different classifiers have the same scale.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, features: int) -> None:
        super().__init__()
        channels, height, width = shape
        narrow, wide = WIDTHS
        cells = -(-height // 4) * -(-width // 4)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, narrow, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(narrow, wide, 3, 2, 1),
            group_norm(wide),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(wide * cells, features),
        )
        self.head = nn.Linear(features, classes)
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> features (B, D)."""
        return (self.trunk(images * 2 - 1) - self.shift) / self.scale

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits of the classes (B, N)."""
        return self.head(F.relu(self.trunk(images * 2 - 1)))

    @torch.no_grad()
    def standardize(self, images: Tensor) -> None:
        """Sets shift and scale so that the features of `images` (B, C, H, W) have mean 0 and variance 1."""
        features = self.trunk(images * 2 - 1)
        self.shift.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-6))


@dataclass(frozen=True)
class Labelled:
    """M labelled images, uint8 (M, C, H, W). labels: int64 (M,). binarize: the setting `data.binarize`."""

    images: Tensor
    labels: Tensor
    binarize: str


def fit(
    model: Classifier, data: Labelled, budget: int, generator: torch.Generator, show: Callable[[int], None]
) -> None:
    """Trains by cross-entropy on `budget` images in randomly drawn batches, then standardizes the features.

    The data stay on the CPU, even if the model is on a GPU. show: called with the number of images seen.
    """
    device = model.shift.device
    optimizer = AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for seen in range(0, budget, BATCH):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _rate_factor(seen, budget)
        rows = torch.randint(len(data.images), (BATCH,), generator=generator)
        x = binarized(data.images[rows], data.binarize, generator)
        loss = F.cross_entropy(model.logits(x.to(device)), data.labels[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        show(min(seen + BATCH, budget))
    some = data.images[torch.randperm(len(data.images), generator=generator)[:STANDARD]]
    model.eval().standardize(binarized(some, data.binarize, generator).to(device))


@torch.no_grad()
def accuracy(model: Classifier, data: Labelled, generator: torch.Generator) -> float | None:
    """The share of the images that are classified correctly; None if `data` has no images."""
    if len(data.labels) == 0:
        return None
    right = 0
    for images, truth in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
        x = binarized(images, data.binarize, generator).to(model.shift.device)
        right += int((model.logits(x).argmax(1).cpu() == truth).sum())
    return right / len(data.labels)


def _rate_factor(seen: int, budget: int) -> float:
    """Learning rate / peak, which rises over the first 1/20 of the budget, then falls to 0 as a cosine."""
    warmup = budget // 20
    if seen < warmup:
        return (seen + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (seen - warmup) / (budget - warmup)))
