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
    """Moves a share of a batch's images and parses them anew. parser: None for a model without parts.

    until: the part of the stage's budget after which none is moved. background: what comes in over the edge.
    """

    settings: Augmentation
    parser: Parser | None
    downscale: int
    until: float
    background: float

    def __call__(self, batch: Batch, progress: float, generator: torch.Generator) -> Batch:
        """progress: the part of the stage's budget that is seen, in [0, 1]."""
        if progress >= self.until:
            return batch
        images = moved(batch.images, self.settings, generator, self.background)
        z = batch.z if self.parser is None else self.parser(to_small(images, self.downscale)).z
        return Batch.of(images, z)


def moves(experiment: Experiment, bank: PartBank | None, stage: str) -> Moves | None:
    """The moves of a stage's training images; None if there are none. bank: on the device of training.

    experiment: with the settings of the stage (`train_stage.with_settings_of`).
    """
    if not experiment.train.augmented:
        return None
    parser = None if bank is None else Parser.of(experiment, bank)
    own = experiment.section_of(stage)
    until = 1 - own.plain_images / own.images
    background = experiment.canvas_grid.background
    return Moves(experiment.train, parser, experiment.grid.downscale, until, background)
