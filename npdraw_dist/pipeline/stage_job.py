"""What each rank of a stage `prior` or `vae` does: its feed, moved images, pictures, and the loop.

Training data up to `data.cache_mb` is read once into the memory of each worker; more is streamed.
Shapes: N images, K parts, C channels, P patch side, H x W pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.core.images import canvas_bytes, ink, tiled
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.core.paste import render
from npdraw_dist.data.parquet import index_type
from npdraw_dist.data.parses import Parses
from npdraw_dist.nn.generative import ModelObjective
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.parse.parser import Parser
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import Context
from npdraw_dist.training.feed import Feed, MemoryFeed, Share, StreamFeed
from npdraw_dist.training.loop import Budget, Data, Paint, train

Start = dict[str, Tensor]  # what the weights of a stage begin with: tensors of the model, by name; not all
MakeObjective = Callable[[Experiment, Start], Objective]

# How the checkpoints of a stage are compared.
CRITERIA = {
    "prior": checkpoint.Criterion("valid/nll", "min"),
    "vae": checkpoint.Criterion("valid/elbo", "max"),
}
PICTURED = 16  # samples and reconstructions of a validation
# A stream's shuffle window has at least two batches, so many bytes, and so many for each image of a batch.
# The workers hold three of them in all.
SHUFFLE_BYTES, SHUFFLE_BYTES_EACH = 64 << 20, 256 << 10
LARGEST_BANK = 400  # parts that are shown


@dataclass(frozen=True)
class Given:
    """Tensors of a stage. train: None if streamed. parts: (K, C, P, P), to move or show images."""

    start: Start
    valid: Batch
    train: Batch | None
    parts: Tensor | None


@dataclass(frozen=True)
class StageJob:
    """What every worker of a stage is given."""

    stage: str
    experiment: Experiment
    make_objective: MakeObjective
    parses: Parses
    given: Given

    @property
    def settings(self) -> TrainConfig:
        return self.experiment.train_of(self.stage)

    @property
    def images(self) -> int:
        """The training budget of the stage."""
        return self.experiment.section_of(self.stage).images


def work(job: StageJob, context: Context) -> dict[str, Any]:
    """One rank of a training run; returns the loop's summary."""
    experiment, settings = job.experiment, job.settings
    given = job.given
    torch.manual_seed(experiment.seed)  # the initial weights, the same on every rank
    objective = job.make_objective(experiment, given.start)
    bank = None if given.parts is None else PartBank(given.parts.to(context.device))
    some = job.parses if given.train is None else given.train
    share = Share(
        settings.batch_size, settings.micro_batch, experiment.seed, context.rank, context.world_size
    )
    feed = make_feed(some, share, row_bytes(experiment))
    data = Data(feed, given.valid, moves(experiment, bank, job.stage), painter(experiment, bank))
    patience = settings.patience if settings.select == "best" else 0
    budget = Budget(job.images, settings.eval_every_images, CRITERIA[job.stage], patience)
    return train(objective, data, settings, budget, experiment.seed, context)


def make_feed(data: Batch | Parses, share: Share, size: int) -> Feed:
    """The images of one rank: of a batch in memory, or of parses, which are read as they are needed.

    size: bytes of a row.
    """
    if isinstance(data, Batch):
        return MemoryFeed(data, share)
    batch = share.batch_size
    window = max(2 * batch, max(SHUFFLE_BYTES, SHUFFLE_BYTES_EACH * batch) // size)
    groups = data.groups(size)
    return StreamFeed(groups.rows, partial(data.stream, groups), share, window)


def row_bytes(experiment: Experiment) -> int:
    """Bytes of a row of `Batch`."""
    steps = experiment.steps if "bank" in experiment.stage_names else 0
    index = np.dtype(index_type(max(experiment.bank.size, experiment.canvas_grid.places) - 1)).itemsize
    return math.prod(experiment.data.shape) + steps * (1 + 2 * index)


def is_streamed(experiment: Experiment, stage: str, rows: int) -> bool:
    """Whether `rows` training images are streamed, not read into memory."""
    # A stream deals each rank a share of an epoch; below a batch there is nothing to share out.
    return (
        rows * row_bytes(experiment) > experiment.data.cache_mb * 2**20
        and rows >= experiment.train_of(stage).batch_size
    )


@dataclass(frozen=True)
class Moves:
    """Moves a share of a batch's images and parses them anew. parser: None for a model without parts."""

    experiment: Experiment
    stage: str
    parser: Parser | None

    def __call__(self, batch: Batch, progress: float, noise: Noise) -> Batch:
        """progress: the part of the stage's budget that is seen, in [0, 1]."""
        experiment, own = self.experiment, self.experiment.section_of(self.stage)
        if progress >= 1 - own.plain_images / own.images:
            return batch
        background = experiment.canvas_grid.background
        images = moved(batch.images, experiment.train, noise, background)
        small = canvas_bytes(images, experiment.grid.downscale)
        z = batch.z if self.parser is None else self.parser(small).z
        return Batch.of(images, z, batch.condition)


def moves(experiment: Experiment, bank: PartBank | None, stage: str) -> Moves | None:
    """The moves of a stage's training images; None if the run moves none."""
    parser = None if bank is None else Parser.of(experiment, bank)
    return Moves(experiment, stage, parser) if experiment.train.augmented else None


def moved(images: Tensor, settings: TrainConfig, noise: Noise, background: float = 0.0) -> Tensor:
    """uint8 images (B, C, H, W) -> the same, each moved with the chance `augmented`.

    Pixels are interpolated bilinearly unless `whole_pixels`. What comes in over the edge is background: 0.0
    black, 1.0 white.
    """
    batch, _, height, width = images.shape
    drawn = uniform((batch, 8), noise, torch.empty((), device=images.device))
    chosen, mirrored = drawn[:, 0] < settings.augmented, drawn[:, 1] < settings.mirror
    turn, *stretches, lean, aside, below = (2 * drawn[:, 2:] - 1).unbind(1)  # in [-1, 1]
    angle = turn * settings.rotate * math.pi / 180
    across, down = ((settings.stretch * stretch).exp() for stretch in stretches)
    slope = lean * settings.shear
    right, lower = aside * 2 * settings.shift / width, below * 2 * settings.shift / height
    side = 1 - 2 * mirrored.float()
    cos, sin, aspect = angle.cos(), angle.sin(), height / width
    # From a place of the moved image to that of the image, both in [-1, 1]; `aspect` keeps angles of pixels.
    rows = [
        [side * cos * across, (slope - sin) * down * aspect, right],
        [side * sin * across / aspect, cos * down, lower],
    ]
    places = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = F.affine_grid(places, [batch, 1, height, width], align_corners=False)
    inked = ink(images, background).float()  # grid_sample fills with 0
    how = "nearest" if settings.whole_pixels else "bilinear"
    new = F.grid_sample(inked, grid, how, align_corners=False).round().clamp(0, 255).to(torch.uint8)
    return torch.where(chosen[:, None, None, None], ink(new, background), images)


def painter(experiment: Experiment, bank: PartBank | None) -> Paint | None:
    """Paints samples, and reconstructions or parses of validation images where there are some.

    bank: the run's, on the device of training; None if the run has none, or a model of parts shows nothing.
    """
    if bank is None and "bank" in experiment.stage_names:
        return None

    def paint(objective: Objective, valid: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        count, some = PICTURED, valid[:PICTURED].to(generator.device)
        if isinstance(objective, PriorObjective):
            assert bank is not None
            grid = experiment.canvas_grid
            drawn = sheet(render(bank.parts, objective.prior.sample(count, generator), grid))
            parses = {"parses": sheet(render(bank.parts, some.z, grid))} if len(some) else {}
            return {"samples": drawn, **parses}
        assert isinstance(objective, ModelObjective)
        model = objective.model
        found = {"samples": sheet(model.sample(count, generator))}
        if isinstance(model, NPDraw) and len(some):
            x = binarized(some.images, model.spec.binarize, generator)
            pairs = torch.stack([x, model.reconstruct(x)], 1)
            found["reconstructions"] = sheet(pairs.flatten(0, 1))
        return found

    return paint


def sheet(images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> one picture (3, H', W'), eight in a row, which pairs fill evenly."""
    return _framed(images.clamp(0, 1), columns=8, frame=1)


def bank_sheet(bank: PartBank) -> Tensor:
    """The first parts of a bank, enlarged: (3, H', W')."""
    parts = bank.parts[:LARGEST_BANK].repeat_interleave(4, 2).repeat_interleave(4, 3)
    return _framed(parts, columns=20, frame=2)


def _framed(images: Tensor, columns: int, frame: int) -> Tensor:
    """(N, C, H, W) -> (3, H', W'), with grey lines of `frame` pixels around each image, and where none is."""
    missing = -len(images) % min(columns, len(images))
    cells = F.pad(images, (frame, 0, frame, 0, 0, 0, 0, missing), value=0.5)
    page = F.pad(tiled(cells, min(columns, len(images))), (0, frame, 0, frame), value=0.5)
    return page.expand(3, -1, -1)
