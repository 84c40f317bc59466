"""Defines the work of each rank in the stages `prior` and `vae`, with its feed, augmentation and pictures.

Training data up to `data.cache_mb` are sent to the memory of each worker; larger data are streamed.
Shapes: B, N images, K parts, C channels, P patch side, H x W pixels.
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

Start = dict[str, Tensor]  # initial values of some of the model's tensors, by name
MakeObjective = Callable[[Experiment, Start], Objective]

# Stage -> the metric that ranks its checkpoints.
CRITERIA = {
    "prior": checkpoint.Criterion("valid/nll", "min"),
    "vae": checkpoint.Criterion("valid/elbo", "max"),
}
PICTURED = 16  # number of samples, and of parses or reconstructions, in a validation's pictures
# A stream's shuffle window has at least two batches, at least SHUFFLE_BYTES, and at least SHUFFLE_BYTES_EACH
# for each image of a batch. All workers together hold three windows in memory.
SHUFFLE_BYTES, SHUFFLE_BYTES_EACH = 64 << 20, 256 << 10


@dataclass(frozen=True)
class StageJob:
    """The input of every worker of a stage.

    train: the training images; None if they are streamed from `parses`. parts: the bank's parts
    (K, C, P, P); None if neither augmentation nor pictures need them.
    """

    stage: str
    experiment: Experiment
    make_objective: MakeObjective
    start: Start
    parses: Parses
    train: Batch | None
    valid: Batch
    parts: Tensor | None


def work(job: StageJob, context: Context) -> dict[str, Any]:
    """Runs one rank of a training; returns the loop's summary."""
    experiment, settings = job.experiment, job.experiment.train_of(job.stage)
    torch.manual_seed(experiment.seed)  # initial weights are the same on every rank
    objective = job.make_objective(experiment, job.start)
    bank = None if job.parts is None else PartBank(job.parts.to(context.device))
    share = Share(settings.batch_size, experiment.seed, context.rank, context.world_size)
    feed = make_feed(job.parses if job.train is None else job.train, share, row_bytes(experiment))
    data = Data(feed, job.valid, moves(experiment, bank, job.stage), painter(experiment, bank))
    patience = settings.patience if settings.select == "best" else 0
    images = experiment.section_of(job.stage).images
    budget = Budget(images, settings.eval_every_images, CRITERIA[job.stage], patience)
    return train(objective, data, settings, budget, experiment.seed, context)


def make_feed(data: Batch | Parses, share: Share, size: int) -> Feed:
    """The feed of a rank, which reads a batch in memory or streams parses. size: bytes of a row."""
    if isinstance(data, Batch):
        return MemoryFeed(data, share)
    batch = share.batch_size
    window = max(2 * batch, max(SHUFFLE_BYTES, SHUFFLE_BYTES_EACH * batch) // size)
    groups = data.groups(size)
    return StreamFeed(groups.rows, partial(data.stream, groups), share, window)


def row_bytes(experiment: Experiment) -> int:
    """The bytes of a row of a `Batch`, which is an image and its parse."""
    steps = experiment.steps if "bank" in experiment.stage_names else 0
    index = np.dtype(index_type(max(experiment.bank.size, experiment.canvas_grid.places) - 1)).itemsize
    return math.prod(experiment.data.shape) + steps * (1 + 2 * index)


def is_streamed(experiment: Experiment, stage: str, rows: int) -> bool:
    """Whether `rows` training images are streamed instead of read into memory."""
    # A stream gives each rank a share of an epoch, which must contain at least one batch.
    return (
        rows * row_bytes(experiment) > experiment.data.cache_mb * 2**20
        and rows >= experiment.train_of(stage).batch_size
    )


@dataclass(frozen=True)
class Moves:
    """Augments a batch by moving some images, then parses it again. parser: None if a model has no parts."""

    experiment: Experiment
    stage: str
    parser: Parser | None

    def __call__(self, batch: Batch, progress: float, noise: Noise) -> Batch:
        """The new batch, or `batch` during the final `plain_images`. progress: share of the budget done."""
        experiment, own = self.experiment, self.experiment.section_of(self.stage)
        if progress >= 1 - own.plain_images / own.images:
            return batch
        images = moved(batch.images, experiment.train, noise, experiment.canvas_grid.background)
        small = canvas_bytes(images, experiment.grid.downscale)
        z = batch.z if self.parser is None else self.parser(small).z
        return Batch.of(images, z, batch.condition)


def moves(experiment: Experiment, bank: PartBank | None, stage: str) -> Moves | None:
    """The augmentation of a stage's training images; None if the run has none."""
    if not experiment.train.augmented:
        return None
    return Moves(experiment, stage, None if bank is None else Parser.of(experiment, bank))


def moved(images: Tensor, settings: TrainConfig, noise: Noise, background: float = 0.0) -> Tensor:
    """Moves uint8 images (B, C, H, W) by random affine maps, each with probability `settings.augmented`.

    Pixels are interpolated bilinearly or, with `whole_pixels`, copied from the nearest pixel. `background`,
    0.0 (black) or 1.0 (white), fills the uncovered edge.
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
    # Maps points of the moved image to points of the original, both in [-1, 1]; `aspect` keeps angles right.
    rows = [
        [side * cos * across, (slope - sin) * down * aspect, right],
        [side * sin * across / aspect, cos * down, lower],
    ]
    places = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = F.affine_grid(places, [batch, 1, height, width], align_corners=False)
    inked = ink(images, background).float()  # grid_sample fills with 0, which means background in ink
    how = "nearest" if settings.whole_pixels else "bilinear"
    new = F.grid_sample(inked, grid, how, align_corners=False).round().clamp(0, 255).to(torch.uint8)
    return torch.where(chosen[:, None, None, None], ink(new, background), images)


def painter(experiment: Experiment, bank: PartBank | None) -> Paint | None:
    """Returns a function that makes pictures of samples, and of validation images' parses or reconstructions.

    bank: the run's bank, on the training device. Returns None if a model that draws parts has no bank.
    """
    if bank is None and "bank" in experiment.stage_names:
        return None

    def paint(objective: Objective, valid: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        some = valid[:PICTURED].to(generator.device)
        if isinstance(objective, PriorObjective):
            assert bank is not None
            drawn, grid = objective.prior.sample(PICTURED, generator), experiment.canvas_grid
            shown = {"samples": drawn, "parses": some.z} if len(some) else {"samples": drawn}
            return {name: sheet(render(bank.parts, z, grid)) for name, z in shown.items()}
        assert isinstance(objective, ModelObjective)
        model = objective.model
        found = {"samples": sheet(model.sample(PICTURED, generator=generator))}
        if isinstance(model, NPDraw) and len(some):
            x = binarized(some.images, model.spec.binarize, generator)
            pairs = torch.stack([x, model.reconstruct(x)], 1)
            found["reconstructions"] = sheet(pairs.flatten(0, 1))
        return found

    return paint


def sheet(images: Tensor, columns: int = 8) -> Tensor:
    """(N, C, H, W) in [0, 1] -> one picture (3, H', W') with a grey line, one pixel wide, around each."""
    columns = min(columns, len(images))
    cells = F.pad(images.clamp(0, 1), (1, 0, 1, 0, 0, 0, 0, -len(images) % columns), value=0.5)
    return F.pad(tiled(cells, columns), (0, 1, 0, 1), value=0.5).expand(3, -1, -1)
