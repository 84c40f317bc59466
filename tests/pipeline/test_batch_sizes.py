"""A larger batch with the rates of a smaller one (`train.rate_batch`) validates alike at equal images.

The prior of the preset digits, on parses of scikit-learn's digits, in this process.
"""

import math

import numpy as np
import pytest
import torch

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.data.sources import open_source
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.augment import moves
from npdraw_dist.pipeline.train_stage import memory_feed, with_settings_of
from npdraw_dist.training.context import LocalContext
from npdraw_dist.training.loop import Budget, Data, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL, LARGE = 8, 32
RATE_BATCH = 32  # of the preset's rate of 2e-3 here
IMAGES = 36_000
TOLERANCE = 0.3  # nats


def setting(batch: int, rate_batch: int | None, rate: float = 2e-3, images: int = IMAGES) -> Experiment:
    """All validation images are scored, whatever the micro-batch."""
    sizes = {"batch_size": batch, "micro_batch": min(batch, 32), "rate_batch": rate_batch}
    values = {
        "prior": {"images": images, "learning_rate": rate},
        "train": {**sizes, "eval_batches": 50},
        "scale": {"num_workers": 1},
    }
    return with_settings_of("prior", resolve("digits", None, values))


class Digits:
    """The bank, and the parsed digits of training and validation."""

    def __init__(self, experiment: Experiment) -> None:
        train_images, valid_images = (images_of(experiment, split) for split in ("train", "valid"))
        numbers = np.random.default_rng(0)
        patches = extract(train_images, experiment.canvas_grid, "places", experiment.bank.min_energy, numbers)
        self.bank: PartBank = build_bank(patches, 1, experiment.bank, 0)[0]
        parser = Parser.of(experiment, self.bank)
        self.train, self.valid = (
            Batch.of(images, parser(images).z)
            for images in map(torch.from_numpy, (train_images, valid_images))
        )


def images_of(experiment: Experiment, split: str) -> np.ndarray:
    """(N, 1, H, W) uint8."""
    shards = open_source(experiment.data, experiment.seed).shards(split)
    return np.concatenate([shard.read().images for shard in shards])


def valid_nll(digits: Digits, experiment: Experiment, seed: int = 0) -> float:
    """-log p(z) of the validation parses after the budget, in nats an image."""
    torch.manual_seed(seed)
    objective = prior.make_objective(experiment, None)
    context, images = LocalContext(), experiment.prior.images
    experiment = experiment.model_copy(update={"seed": seed})
    data = Data(memory_feed(digits.train, experiment), digits.valid, moves(experiment, digits.bank, "prior"))
    train(objective, data, experiment.train, Budget(images, images), seed, context)
    return float(context.reports[-1]["valid/nll"])


def test_a_large_batch_validates_as_a_small_one_with_the_rule_and_worse_without() -> None:
    digits = Digits(setting(SMALL, RATE_BATCH))
    small, large = (valid_nll(digits, setting(batch, RATE_BATCH)) for batch in (SMALL, LARGE))
    assert large == pytest.approx(small, abs=TOLERANCE)
    same_rate = 2e-3 * math.sqrt(SMALL / RATE_BATCH)
    without = valid_nll(digits, setting(LARGE, None, same_rate))
    assert without > large + TOLERANCE, (small, large, without)
