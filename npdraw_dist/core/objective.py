"""The interface between a model's loss and the training loop. Shapes: B batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NotRequired, TypedDict

from torch import Tensor, nn

from npdraw_dist.core.noise import Noise
from npdraw_dist.core.parts import Batch

Gather = Callable[[Tensor], Tensor]  # (...) on each rank -> (ranks, ...) on every rank


class ParameterGroup(TypedDict):
    """Parameters that the optimizer treats alike. `params` may be empty.

    lr: peak learning rate. matrices: whether the parameters map features to features, so that Muon may train
    them. until: share of the training budget after which the parameters do not change.
    """

    params: list[nn.Parameter]
    lr: float
    weight_decay: float
    matrices: bool
    until: NotRequired[float]


@dataclass(frozen=True)
class Stepping:
    """Settings of Adam and of the schedule of its learning rates.

    beta2: decay of squared gradients. clip: norm to which the whole gradient is clipped. warmup: share of the
    budget over which the rates rise. falls: whether the rates fall at the end of the budget.
    """

    beta2: float = 0.99
    clip: float = 5.0
    warmup: float = 0.05
    falls: bool = True


class Objective(nn.Module, ABC):
    """The loss of a training stage, with the networks that it trains."""

    stepping: ClassVar[Stepping] = Stepping()

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """All trained parameters, each in exactly one group."""

    @abstractmethod
    def forward(self, batch: Batch, progress: float, generator: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss (B,) and metrics by name, each (B,).

        progress: share of the budget that is used, in [0, 1]. generator: for draws of z and binary pixels.
        """

    def after_step(self, gather: Gather) -> None:
        """Changes weights after each optimizer step, by a rule without gradients, the same on all ranks."""

    def may_end(self, progress: float) -> bool:
        """Whether a validation at this share of the budget may end the training early."""
        return True

    @abstractmethod
    def evaluate(self, batch: Batch, generator: Noise) -> dict[str, Tensor]:
        """Validation metrics by name, each (B,), without the loss weights of training (such as beta)."""


def ramp(images_seen: float, start: float, end: float, images: float) -> float:
    """Rises or falls linearly from `start` at 0 images to `end` at `images`, then stays at `end`.

    If `images` is 0, the result is always `end`.
    """
    if images <= 0:
        return end
    progress = min(max(images_seen / images, 0.0), 1.0)
    return start + (end - start) * progress
