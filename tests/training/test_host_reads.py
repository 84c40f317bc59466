"""In a training step the host never waits for a value: a GPU then always has work. Counted on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.load import preset_names, resolve
from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.baselines.base import BaselineObjective
from npdraw_dist.nn.models import make_baseline
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.parse.eager import EagerChooser
from npdraw_dist.parse.parser import DisjointChooser
from npdraw_dist.pipeline.augment import moves
from npdraw_dist.pipeline.train_stage import with_settings_of
from npdraw_dist.training.context import LocalContext
from npdraw_dist.training.loop import Augment, Run
from tests.helpers.host_reads import HostReads
from tests.helpers.preset_models import preset_model, real_images
from tests.helpers.tiny_baselines import KINDS

SIZES: dict[str, Any] = {"batch_size": 4, "micro_batch": 2, "gradient_clip": 1.0}
IMAGES = 1000


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is seldom asked whether gradients were finite; a CPU at each step."""
    monkeypatch.setattr(Run, "checks", lambda run, done: False)


def reads(
    objective: Objective, settings: TrainConfig, data: Batch, step: int, augment: Augment | None = None
) -> list[str]:
    run = Run(objective, settings.model_copy(update=SIZES), 0, LocalContext(), augment)
    micro_batches = [(0, data[:2]), (1, data[2:4])]
    run.update(step, micro_batches, IMAGES)  # tables are made, and Adam's moments
    with HostReads() as mode:
        run.update(step, micro_batches, IMAGES)
    return mode.found


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: bool(x.any())),
        ("nonzero", lambda x: x.nonzero()),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("index by a mask", lambda x: x[x > 0]),
        ("_unique2", lambda x: x.unique()),
        ("lift_fresh", lambda x: x + torch.tensor([1.0])),
        (None, lambda x: x[torch.arange(2)].masked_fill(x[:2] > 0, 1.0).repeat_interleave(2)),
    ],
)
def test_reads_are_found(name: str | None, operation: Callable[[Tensor], object]) -> None:
    x = torch.rand(3)
    with HostReads() as mode:
        operation(x)
    assert mode.found == ([] if name is None else [name])


def test_a_write_by_a_mask_is_found() -> None:
    x = torch.rand(3)
    with HostReads() as mode:
        x[x > 0] = torch.zeros(3)
    assert mode.found == ["index_put_ by a mask"]


@pytest.mark.parametrize("phase", ["relaxed", "hard"])
@pytest.mark.parametrize("name", preset_names())
def test_a_step_of_the_vae_waits_for_nothing(name: str, phase: str) -> None:
    case = preset_model(name, 4, small=True, prior={"dropout": 0.1})
    step = 0 if phase == "relaxed" else (IMAGES - 1) // SIZES["batch_size"]
    if case.objective.is_hard(step * SIZES["batch_size"] / IMAGES) != (phase == "hard"):
        pytest.skip(f"the preset has no {phase} draws")
    assert reads(case.objective, case.experiment.train, case.batch, step) == []


@pytest.mark.parametrize("name", preset_names())
def test_a_step_of_the_prior_waits_for_nothing(name: str) -> None:
    case = preset_model(name, 4, small=True, prior={"dropout": 0.1})
    objective = PriorObjective(case.model.prior, 1e-3, 0.01)
    assert reads(objective, case.experiment.train, case.batch, 0) == []


def augmented_presets() -> list[str]:
    return [name for name in preset_names() if resolve(name, None, {}).train.augmented]


@pytest.mark.parametrize("name", augmented_presets())
def test_moved_images_are_parsed_without_waiting(name: str) -> None:
    """With the parser that a GPU has: greedy steps of one shape."""
    case = preset_model(name, 4, small=True)
    settings = with_settings_of("vae", case.experiment)
    bank = PartBank(case.model.bank_parts)
    change = moves(settings, bank, "vae")
    assert change is not None
    assert change.parser is not None
    chooser = change.parser.chooser
    if not isinstance(chooser, DisjointChooser):
        chooser = EagerChooser(bank, settings.canvas_grid, settings.steps, settings.parse.min_gain)
    change.parser.chooser = chooser
    assert reads(case.objective, settings.train, case.batch, 0, replace(change, until=1.0)) == []


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_baseline_waits_for_nothing(kind: str, name: str) -> None:
    settings: Experiment = resolve(name, None, {"model": {"kind": kind}, "baseline": {"hidden": 32}})
    images = torch.from_numpy(real_images(settings.data.shape, 4))
    none = torch.zeros(4, 0, dtype=torch.int64)
    objective = BaselineObjective(make_baseline(BaselineSpec.of(settings)), settings.vae)
    assert reads(objective, settings.train, Batch(images, none.bool(), none, none), 0) == []
