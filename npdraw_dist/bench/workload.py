"""The images that every section measures, a bank and parses of these images, and the timing of functions.

Shapes: N images, C channels, H x W pixels, h x w canvas.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.data.shards import open_source
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.parse.parser import Parser
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import local_device
from npdraw_dist.training.device import timed

QUICK_IMAGES, FULL_IMAGES = 4_000, 60_000
BANK_IMAGES = 2_000
LEAST_SHARDS = 24  # minimum to read, since all images of a shard may have the same font or class

# Name (with the unit) -> value. A value that is no number is a version or a name; None means unknown.
Figures = dict[str, float]
Facts = dict[str, float | str | None]


def median_seconds(functions: Sequence[Callable[[], object]], repeats: int, warm_up: int = 0) -> list[float]:
    """The median seconds of each function over `repeats` turns, after `warm_up` turns that do not count.

    The functions take turns, so that a busy moment slows all of them.
    """
    turns = [[timed(function)[1] for function in functions] for _ in range(warm_up + repeats)]
    return [statistics.median(taken) for taken in zip(*turns[warm_up:], strict=True)]


@dataclass(frozen=True)
class Workload:
    """The settings, and how much to measure.

    quick: measure fewer images and repeats. dense: measure the VAE step of the dense reference too.
    """

    experiment: Experiment
    quick: bool
    dense: bool = True

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """At most QUICK_IMAGES or FULL_IMAGES training images (N, C, H, W) of the source.

        They are read at the first use, from shards drawn at random, in random order, so the first images are
        a random sample. Raises UserError if they are too few for the bank.
        """
        experiment, limit = self.experiment, QUICK_IMAGES if self.quick else FULL_IMAGES
        rng = np.random.default_rng(experiment.seed)
        shards = open_source(experiment.data, experiment.seed).shards("train")
        found: list[NDArray[np.uint8]] = []
        for number in rng.permutation(len(shards)):
            if len(found) >= LEAST_SHARDS and sum(map(len, found)) >= limit:
                break
            found.append(shards[number].read().images)
        images = np.concatenate(found)
        images = images[rng.permutation(len(images))[:limit]]
        k, places = experiment.bank.size, experiment.canvas_grid.places
        if k > len(images) * places:
            raise UserError(
                f"bank.size is {k}, but the bench's {len(images):,} images of {places} places have at most "
                f"{len(images) * places:,} patches; lower it"
            )
        return images

    @property
    def canvases(self) -> NDArray[np.uint8]:
        """The canvases of the images, (N, C, h, w) uint8."""
        return canvas_bytes(torch.from_numpy(self.images), self.experiment.grid.downscale).numpy()

    def parser(self) -> Parser:
        """The experiment's parser, with a bank built from the first BANK_IMAGES images."""
        e = self.experiment
        patches = extract(self.canvases[:BANK_IMAGES], e.canvas_grid, e.bank.min_energy)
        settings = e.bank.model_copy(update={"shards": 1})
        return Parser.of(e, build_bank(patches, e.data.shape[0], settings, e.seed)[0])


@dataclass(frozen=True)
class Subject:
    """An experiment, a bank, and a batch of parsed images, on which training and drawing are measured."""

    experiment: Experiment
    bank: PartBank
    batch: Batch

    @classmethod
    def of(cls, work: Workload, size: int) -> "Subject":
        """Takes the first `size` images of the workload, which are repeated if it has fewer."""
        parser = work.parser()
        images = work.images[np.arange(size) % len(work.images)]
        z = parser(canvas_bytes(torch.from_numpy(images), work.experiment.grid.downscale)).z
        return cls(work.experiment, parser.bank, Batch.of(torch.from_numpy(images), z))

    def model(self) -> NPDraw:
        """An untrained model, on the GPU if there is one."""
        torch.manual_seed(self.experiment.seed)
        model = NPDraw(ModelSpec.of(self.experiment))
        model.set_bank(self.bank)
        return model.to(local_device())
