"""What TensorBoard shows of a stage: the bank, reconstructions or parses, and samples.

Shapes: N images, K parts, C channels, P patch side, H x W image.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.any_image import tiled
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.core.paste import render
from npdraw_dist.nn.baselines.base import BaselineObjective
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.objective import PriorObjective, VAEObjective

LARGEST_BANK = 400  # parts that are shown


@dataclass(frozen=True)
class Painter:
    """`training.loop.Paint` of a stage. parts: (K, C, P, P), on the device of training; None: a baseline.

    Parses and reconstructions are those of validation images, where there are some.
    """

    experiment: Experiment
    parts: Tensor | None

    def __call__(self, objective: Objective, valid: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        count = self.experiment.train.pictures
        some = valid[:count].to(generator.device)
        if isinstance(objective, PriorObjective):
            assert self.parts is not None
            grid = self.experiment.canvas_grid
            drawn = sheet(render(self.parts, objective.prior.sample(count, generator), grid))
            parses = {"parses": sheet(render(self.parts, some.z, grid))} if len(some) else {}
            return {"samples": drawn, **parses}
        assert isinstance(objective, VAEObjective | BaselineObjective)
        found = {"samples": sheet(objective.model.sample(count, generator))}
        if isinstance(objective, VAEObjective) and len(some):
            x = binarized(some.images, objective.model.spec.binarize, generator)
            pairs = torch.stack([x, objective.model.reconstruct(x)], 1)
            found["reconstructions"] = sheet(pairs.flatten(0, 1))
        return found


def painter(experiment: Experiment, bank: PartBank | None) -> Painter | None:
    """None if nobody wants pictures, or if they would compile the networks once more.

    bank: of the run, on the device of training; a model of parts shows nothing without it.
    """
    lacking = bank is None and "bank" in experiment.stage_names
    if not experiment.train.pictures or experiment.train.compile or lacking:
        return None
    return Painter(experiment, None if bank is None else bank.parts)


def sheet(images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> one picture (C, H', W'), eight in a row, which pairs fill evenly."""
    return _framed(images.clamp(0, 1), columns=8, frame=1)


def bank_sheet(bank: PartBank) -> Tensor:
    """The first parts of a bank, enlarged: (C, H', W')."""
    parts = bank.parts[:LARGEST_BANK].repeat_interleave(4, 2).repeat_interleave(4, 3)
    return _framed(parts, columns=20, frame=2)


def _framed(images: Tensor, columns: int, frame: int) -> Tensor:
    """(N, C, H, W) -> (3, H', W'), with grey lines of `frame` pixels around each image, and where none is."""
    missing = -len(images) % min(columns, len(images))
    cells = F.pad(images, (frame, 0, frame, 0, 0, 0, 0, missing), value=0.5)
    page = F.pad(tiled(cells, min(columns, len(images))), (0, frame, 0, frame), value=0.5)
    return page.expand(3, -1, -1)
