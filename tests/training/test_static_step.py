"""A training step of every preset: nothing in it waits for a GPU, it has few kernels, and no buffer changes.

What a GPU would wait for is seen on a CPU too (`tests.helpers.kernels`).
"""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from npdraw_dist.config.load import resolve
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartBank
from npdraw_dist.parse.greedy import StaticGreedyChooser
from npdraw_dist.parse.parser import MIN_GAIN
from npdraw_dist.pipeline.stage_job import Moves, moves
from npdraw_dist.pipeline.train_stage import with_settings_of
from npdraw_dist.training.loop import Run
from tests.helpers.gpu import needs_gpu
from tests.helpers.kernels import KernelCounter, count_step
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_presets import NAMES, bank_of, batch_of, objective_of, tiny_preset

BASELINES = [kind for kind in KINDS if kind != "npdraw"]


def run_of(experiment: Experiment, stage: str, augment: Moves | None = None, device: str = "cpu") -> Run:
    own = with_settings_of(stage, experiment).train
    one = own.model_copy(update={"batch_size": 4, "micro_batch": 4})
    return Run(objective_of(experiment, stage), one, 0, LocalContext(device=device), augment)


def phases(experiment: Experiment, stage: str) -> Iterator[tuple[int, int]]:
    """Step and budget of a step with relaxed draws, and of one with hard draws if there are any."""
    yield 0, 1 << 30
    if stage == "vae" and experiment.vae.relaxed_share < 1:
        yield 1, 5


def moves_on_gpu(experiment: Experiment, stage: str) -> Moves | None:
    """The moves of a stage's images, parsed as on a GPU."""
    bank = bank_of(experiment)
    found = moves(with_settings_of(stage, experiment), bank, stage)
    if found is not None and found.parser is not None and not experiment.canvas_grid.disjoint:
        limits = (experiment.steps, MIN_GAIN)
        found.parser.chooser = StaticGreedyChooser(bank, experiment.canvas_grid, *limits)
    return found


@pytest.mark.few(3)
@pytest.mark.parametrize("stage", ["prior", "vae"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_not_wait(name: str, stage: str) -> None:
    experiment = tiny_preset(name)
    for step, images in phases(experiment, stage):
        trained = run_of(experiment, stage, moves_on_gpu(experiment, stage))
        counts = count_step(trained, batch_of(experiment), step, images)
        for part, counter in counts.items():
            assert not counter.waits, (part, step, counter.waits)
            assert counter.kernels, part
        assert trained.first_broken_step() is None


@pytest.mark.few(3)
@pytest.mark.parametrize("stage", ["prior", "vae"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_copied_from_the_host(name: str, stage: str) -> None:
    """On `meta`, where such a copy is seen; the first pass makes the tables of the grid."""
    experiment, meta = tiny_preset(name), torch.device("meta")
    objective, batch = objective_of(experiment, stage).to(meta), batch_of(experiment).to(meta)
    for step, images in phases(experiment, stage):
        for _ in range(2):
            with KernelCounter() as counter:
                loss, metrics = objective(batch, 4 * step / images, None)
                loss.sum().backward()
        assert not counter.waits, counter.waits
        assert all(value.device == meta for value in metrics.values())


@needs_gpu
@pytest.mark.parametrize("stage", ["prior", "vae"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_not_wait_for_the_gpu_that_is_there(name: str, stage: str) -> None:
    experiment = tiny_preset(name)
    parts = bank_of(experiment).parts.to("cuda")
    augment = moves(with_settings_of(stage, experiment), PartBank(parts), stage)
    trained = run_of(experiment, stage, augment, "cuda")
    pinned = batch_of(experiment).pin_memory()
    for step, images in phases(experiment, stage):
        trained.update(step, [(0, pinned)], images)  # caches are filled
        torch.cuda.set_sync_debug_mode("error")
        try:
            trained.update(step, [(0, pinned)], images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trained.first_broken_step() is None


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_step_of_a_baseline_does_not_wait(name: str, kind: str) -> None:
    experiment = tiny_preset(name, kind)
    counts = count_step(run_of(experiment, "vae"), batch_of(experiment), 0, 1 << 30)
    assert not counts["step"].waits, counts["step"].waits


def test_some_presets_are_moved_and_parsed_anew() -> None:
    """The test above would not see the parser otherwise, nor the greedy one."""
    moved = {name: moves_on_gpu(tiny_preset(name), "vae") for name in NAMES}
    parsers = [found.parser for found in moved.values() if found is not None]
    kinds = {type(parser.chooser).__name__ for parser in parsers if parser is not None}
    assert kinds == {"DisjointChooser", "StaticGreedyChooser"}


@pytest.mark.few(3)
@pytest.mark.parametrize("stage", ["prior", "vae"])
@pytest.mark.parametrize("name", NAMES)
def test_no_buffer_changes_in_training(name: str, stage: str) -> None:
    """So the ranks need not send each other theirs."""
    experiment = tiny_preset(name)
    trained = run_of(experiment, stage)
    before = {name: value.clone() for name, value in trained.objective.named_buffers()}
    for step, images in phases(experiment, stage):
        trained.update(step, [(0, batch_of(experiment)), (1, batch_of(experiment))], images)
    for name, value in trained.objective.named_buffers():
        assert torch.equal(value, before[name]), name
    batch_norms = (nn.modules.batchnorm._BatchNorm, nn.modules.batchnorm._LazyNormBase)
    assert not any(isinstance(module, batch_norms) for module in trained.objective.modules())


# Of a micro-batch (forward, backward) and of a step, dropout left out. docs/speed.md has what they were.
LARGEST = {
    ("mnist", "prior"): (80, 135, 229),
    ("mnist", "relaxed"): (250, 290, 565),
    ("mnist", "hard"): (264, 285, 574),
    ("mnist_path", "relaxed"): (400, 395, 830),
    ("mnist_path", "hard"): (545, 360, 940),
}


@pytest.mark.parametrize(("name", "what"), list(LARGEST))
def test_a_step_has_few_kernels(name: str, what: str) -> None:
    sizes = {"bank": {"size": 8}, "prior": {"dropout": 0.0}, "train": {"batch_size": 8, "micro_batch": 4}}
    experiment = resolve(name, None, {**sizes, "scale": {"num_workers": 1}})
    stage = "prior" if what == "prior" else "vae"
    first = (1, 5) if what == "hard" else (0, 1 << 30)
    counts = count_step(run_of(experiment, stage), batch_of(experiment, 2), *first)
    found = {part: counter.kernels.total() for part, counter in counts.items()}
    for part, largest in zip(found, LARGEST[name, what], strict=True):
        assert found[part] <= largest, found


def test_the_counter_counts_kernels_and_waits() -> None:
    x = torch.rand(4, 4)
    with KernelCounter() as counter:
        y = x.t().view(16) if x.t().is_contiguous() else x.t().reshape(16)  # a view, then a copy
        (y + 1).relu()
    assert counter.kernels == {"clone": 1, "add": 1, "relu": 1}
    assert not counter.waits
    with KernelCounter() as counter:
        x[x > 0.5]
        float(x.sum())
        x.nonzero()
        torch.tensor([1.0])
        x.to("meta")
    assert sorted(counter.waits) == [
        "_local_scalar_dense: a number is read",
        "_to_copy: cpu to meta",
        "index: a mask is an index",
        "lift_fresh: host data are made a tensor",
        "nonzero: a size is read",
    ]
