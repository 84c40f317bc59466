"""The average of the weights: against a loop in NumPy, in validation, in checkpoints, after resuming."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.training import checkpoint
from npdraw_dist.training.checkpoint import START
from npdraw_dist.training.feed import MemoryFeed
from npdraw_dist.training.loop import Budget, Data, Run, train, validate
from tests.helpers.local_context import LocalContext
from tests.training.test_loop import Regression, data

BATCH, IMAGES = 8, 40.0


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(batch_size=BATCH, micro_batch=4, average_images=IMAGES, **changes)


def run() -> Run:
    return Run(Regression(), config(), 0, LocalContext())


def steps(trained: Run, first: int, last: int) -> list[dict[str, np.ndarray]]:
    """The weights after each step."""
    feed = MemoryFeed(data(64), BATCH, 4, 0, 0, 1).steps(first)
    found = []
    for step in range(first, last):
        trained.update(step, next(feed), 1000)
        named = trained.objective.named_parameters()
        found.append({name: value.detach().double().numpy().copy() for name, value in named})
    return found


def test_it_is_the_average_of_a_loop_in_numpy() -> None:
    trained = run()
    assert trained.average is not None
    expected = {name: value.double().numpy().copy() for name, value in trained.average.weights.items()}
    limit = np.exp(-BATCH / IMAGES)
    for step, weights in enumerate(steps(trained, 0, 40)):
        kept = min(limit, (1 + step) / (START + step))
        for name, value in weights.items():
            expected[name] = kept * expected[name] + (1 - kept) * value
    for name, average in trained.average.weights.items():
        np.testing.assert_allclose(average, expected[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(average, dict(trained.objective.named_parameters())[name])


def test_validation_sees_the_average_and_a_stage_passes_it_on(tmp_path: Path) -> None:
    images = data(64)
    context = LocalContext(tmp_path)
    feed = MemoryFeed(images, BATCH, 4, 0, 0, 1)
    objective = Regression()
    train(objective, Data(feed, images[:16]), config(), Budget(80, 80), 0, context)
    (record,) = context.reports
    (path,) = (folder for folder in tmp_path.iterdir() if folder.name.startswith(checkpoint.PREFIX))
    tensors, _ = checkpoint.read(path)
    passed_on = Regression()
    passed_on.load_state_dict(checkpoint.weights(tensors))
    again = validate(passed_on, images[:16], config(), 0, LocalContext())
    assert {f"valid/{name}": value for name, value in again.items()}.items() <= record.items()
    trained = {name: tensors[f"trained/{name}"] for name in objective.state_dict()}
    for name, value in objective.state_dict().items():
        assert torch.equal(value, trained[name])
        assert not torch.equal(value, passed_on.state_dict()[name])


def test_a_resumed_run_has_the_same_weights_and_average(tmp_path: Path) -> None:
    whole, first, second = run(), run(), run()
    steps(whole, 0, 6)
    steps(first, 0, 3)
    checkpoint.save(tmp_path, first.objective, first.optimizer, {}, first.average)
    checkpoint.restore(tmp_path, second.objective, second.optimizer, second.average)
    steps(second, 3, 6)
    assert whole.average is not None
    assert second.average is not None
    for name, value in whole.objective.named_parameters():
        assert torch.equal(value, dict(second.objective.named_parameters())[name])
        assert torch.equal(whole.average.weights[name], second.average.weights[name])


def test_without_it_a_checkpoint_has_one_set_of_weights(tmp_path: Path) -> None:
    plain = Run(Regression(), TrainConfig(batch_size=BATCH, micro_batch=4), 0, LocalContext())
    steps(plain, 0, 1)
    checkpoint.save(tmp_path, plain.objective, plain.optimizer, {}, plain.average)
    assert not any(name.startswith("trained/") for name in checkpoint.read(tmp_path)[0])
