"""Moved images of training, with their parses. Shapes: K parts, C channels, P patch side."""

from dataclasses import dataclass

import torch

from npdraw_dist.config.augment import Augmentation
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import to_small
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.data.moves import moved
from npdraw_dist.parse.parser import Parser


@dataclass(frozen=True)
class Moves:
    """Moves a share of a batch's images and parses them anew. parser: None for a model without parts."""

    settings: Augmentation
    parser: Parser | None
    downscale: int

    def __call__(self, batch: Batch, progress: float, generator: torch.Generator) -> Batch:
        """progress: the part of the stage's budget that is seen, in [0, 1]."""
        if progress >= 1 - self.settings.plain_share:
            return batch
        images = moved(batch.images, self.settings, generator)
        z = batch.z if self.parser is None else self.parser(to_small(images, self.downscale)).z
        return Batch.of(images, z)


def moves(experiment: Experiment, bank: PartBank | None) -> Moves | None:
    """The moves of a stage's training images; None if there are none. bank: on the device of training."""
    if not experiment.train.augmented:
        return None
    parser = None if bank is None else Parser.of(experiment, bank)
    return Moves(experiment.train, parser, experiment.grid.downscale)
