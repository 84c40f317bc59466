"""Longer training is never worse: relaxed draws alone collapse once nothing ties q to the parse.

`--preset mnist_cpu --vae.images 1000000` did so once. This is a form of it that takes some minutes.
"""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.parse.parser import Parser
from npdraw_dist.training.feed import MemoryFeed
from npdraw_dist.training.loop import Budget, Data, train
from tests.helpers.local_context import LocalContext

MNIST = Path(os.environ.get("NPDRAW_TEST_MNIST", Path(__file__).parents[3] / "shared/data/mnist9k"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not MNIST.is_dir(), reason="no MNIST at NPDRAW_TEST_MNIST"),
]
IMAGES = 11200  # of the VAE's budget
EVERY = 1600


def digits() -> torch.Tensor:
    """The training images, (N, 1, 28, 28) uint8."""
    path = next(MNIST.rglob("train-images*"))
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())


def elbos(relaxed_share: float | None = None, **vae: Any) -> list[float]:
    """The validation ELBO after each of the intervals of a training in `path` order."""
    settings = {"images": IMAGES, "learning_rate": 2e-3, "tau_end": 1.0, **vae}
    values = {"parse": {"order": "path"}, "prior": {"images": 4800}, "vae": settings}
    schedule = {"batch_size": 16, "micro_batch": 8, "eval_batches": 50}
    experiment = resolve("mnist_cpu", None, values | {"train": schedule})
    images = digits()
    held_out, images = images[:400], images[400:]
    grid = experiment.canvas_grid
    patches = extract(images.numpy(), grid, experiment.bank.min_energy)
    bank, _ = build_bank(patches, 1, experiment.bank, 0)
    parser = Parser.of(experiment, bank)
    data = (
        MemoryFeed(Batch.of(images, parser(images).z), 16, 8, 0, 0, 1),
        Batch.of(held_out, parser(held_out).z),
    )
    torch.manual_seed(0)
    model = NPDraw(ModelSpec.of(experiment))
    model.set_bank(bank)
    run(PriorObjective(model.prior, 2e-3), Data(*data), experiment, Budget(4800, 4800))
    vae_objective = VAEObjective(model, experiment.vae)
    vae_objective.relaxed_share = relaxed_share or vae_objective.relaxed_share
    reports = run(vae_objective, Data(*data), experiment, Budget(IMAGES, EVERY))
    return [report["valid/elbo"] for report in reports]


def run(objective: Objective, data: Data, experiment: Experiment, budget: Budget) -> list[dict[str, Any]]:
    context = LocalContext()
    train(objective, data, experiment.train, budget, 0, context)
    return context.reports


def test_relaxed_draws_alone_collapse_and_hard_ones_do_not() -> None:
    alone = elbos(relaxed_share=1.0, parse_weight_end=0)
    assert alone[-1] < max(alone) - 5, f"the collapse that this test is about did not come: {alone}"
    followed = elbos(relaxed_images=EVERY, parse_weight_end=0)
    assert followed[-1] > max(followed) - 1, followed
    assert followed[-1] > max(alone), (followed, alone)
