"""No operation of a training step waits for a GPU, and no buffer changes.

`tests.helpers.gpu` finds such operations on a CPU, too.
"""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.parse.greedy import StaticGreedyChooser
from npdraw_dist.parse.parser import MIN_GAIN
from npdraw_dist.pipeline.stage_job import Moves, moves
from npdraw_dist.training.loop import Run
from tests.helpers.gpu import Waits, needs_gpu
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_baselines import KINDS
from tests.helpers.tiny_presets import bank_of, batch_of, objective_of, tiny_preset

CASES = [  # networks, orders, latents, likelihoods and augmentations that differ
    *(("mnist_path", "prior"), ("mnist_path", "vae")),
    *(("authors", "vae"), ("authors", "prior")),
    *(("mnist_path raster", "vae"), ("mnist_path ranked", "vae")),
    *(("emoji", "prior"), ("emoji", "vae")),
]


def experiment_of(name: str) -> Experiment:
    """A tiny preset, with another order of the drawings if it is named: `PRESET ORDER`."""
    preset, _, order = name.partition(" ")
    found = tiny_preset(preset)
    parse = found.parse.model_copy(update={"order": order or found.parse.order})
    return found.model_copy(update={"parse": parse})


def run_of(experiment: Experiment, stage: str, augment: Moves | None = None, device: str = "cpu") -> Run:
    own = experiment.train_of(stage)
    one = own.model_copy(update={"batch_size": 4, "micro_batch": 4})
    return Run(objective_of(experiment, stage), one, 0, LocalContext(device=device), augment)


def waits_of(trained: Run, batch: Batch, step: int, images: int) -> Counter[str]:
    """The waits of a step, without the check for skipped steps, which few steps on a GPU make."""
    for _ in range(2):  # the optimizer makes its moments, caches are filled
        trained.update(step, (0, batch), images)
    with Waits() as waits:
        trained.update(step, (0, batch), images)
    return waits.seen


def phases(experiment: Experiment, stage: str) -> Iterator[tuple[int, int]]:
    """Step and budget of a step with relaxed draws, and of one with hard draws if there are any."""
    yield 0, 1 << 30
    if stage == "vae" and experiment.vae.relaxed_share < 1:
        yield 1, 5


def moves_on_gpu(experiment: Experiment, stage: str) -> Moves | None:
    """The moves of a stage's images, parsed as on a GPU."""
    bank = bank_of(experiment)
    found = moves(experiment, bank, stage)
    if found is not None and found.parser is not None and not experiment.canvas_grid.disjoint:
        limits = (experiment.steps, MIN_GAIN)
        found.parser.chooser = StaticGreedyChooser(bank, experiment.canvas_grid, *limits)
    return found


@pytest.mark.few(4)
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_a_step_does_not_wait_and_changes_no_buffer(name: str, stage: str) -> None:
    """So the ranks need not send each other their buffers."""
    experiment = experiment_of(name)
    for step, images in phases(experiment, stage):
        trained = run_of(experiment, stage, moves_on_gpu(experiment, stage))
        before = {key: value.clone() for key, value in trained.objective.named_buffers()}
        assert not waits_of(trained, batch_of(experiment), step, images)
        assert not trained.skipped.any()
        for key, value in trained.objective.named_buffers():
            assert torch.equal(value, before[key]), key


@pytest.mark.few(4)
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_nothing_is_copied_from_the_host(name: str, stage: str) -> None:
    """On `meta`, which shows such copies. The first pass makes the tables of the grid."""
    experiment, meta = experiment_of(name), torch.device("meta")
    objective, batch = objective_of(experiment, stage).to(meta), batch_of(experiment).to(meta)
    for step, images in phases(experiment, stage):
        for _ in range(2):
            with Waits() as waits:
                loss, metrics = objective(batch, 4 * step / images, None)
                loss.sum().backward()
        assert not waits.seen
        assert all(value.device == meta for value in metrics.values())


@needs_gpu
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_a_step_does_not_wait_for_the_gpu_that_is_there(name: str, stage: str) -> None:
    experiment = experiment_of(name)
    parts = bank_of(experiment).parts.to("cuda")
    augment = moves(experiment, PartBank(parts), stage)
    trained = run_of(experiment, stage, augment, "cuda")
    pinned = batch_of(experiment).pin_memory()
    for step, images in phases(experiment, stage):
        trained.update(step, (0, pinned), images)  # caches are filled
        torch.cuda.set_sync_debug_mode("error")
        try:
            trained.update(step, (0, pinned), images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not trained.skipped.any()


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_baseline_does_not_wait(kind: str) -> None:
    experiment = tiny_preset("mnist", kind)
    assert not waits_of(run_of(experiment, "vae"), batch_of(experiment), 0, 1 << 30)
