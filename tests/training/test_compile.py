"""Compiled networks: CUDA graphs on a GPU, the results of plain ones, and no second compilation."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from npdraw_dist.config.schema import Experiment
from npdraw_dist.training.device import EAGER, Graphs, compile_networks
from npdraw_dist.training.loop import Run, validate
from npdraw_dist.training.workers import has_compiler
from tests.helpers.gpu import needs_gpu
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_presets import batch_of, objective_of, tiny_preset

STEPS = [(0, 1 << 20), (1, 1 << 20), (1, 9), (1, 9)]  # relaxed draws, then hard ones
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


class Asked(nn.Linear):
    """Keeps how it was to be compiled."""

    def compile(self, *arguments: Any, **named: Any) -> None:
        self.named = named


def run_of(experiment: Experiment, stage: str, compiled: bool = False, device: str = "cpu") -> Run:
    settings = experiment.train.model_copy(update={"compile": compiled, "precision": "float32"})
    return Run(objective_of(experiment, stage), settings, 0, LocalContext(device=device))


def plain_dropout() -> Experiment:
    """A tiny model without dropout: compiled, it would draw other numbers."""
    experiment = tiny_preset("mnist")
    prior = experiment.prior.model_copy(update={"dropout": 0.0})
    return experiment.model_copy(update={"prior": prior})


def trained(run: Run, experiment: Experiment) -> Iterator[dict[str, float]]:
    """The validation after each of STEPS, of two micro-batches; the last validation batch is smaller."""
    chunks = [(0, batch_of(experiment, 4)), (1, batch_of(experiment, 8)[4:])]
    for step, images in STEPS:
        run.update(step, chunks, images)
        valid = batch_of(experiment, 6)
        yield validate(run.objective, valid, run.config, 0, run.context, run.graphs)


def test_a_gpu_replays_graphs_of_fixed_shapes() -> None:
    network = Asked(2, 2)
    compile_networks([network], torch.device("cuda"))
    assert network.named == {"mode": "reduce-overhead", "dynamic": False}
    compile_networks([network], torch.device("cpu"))
    assert network.named == {"mode": "default", "dynamic": False}
    assert not EAGER.used


@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_gradients_in_place_give_the_same_weights(stage: str) -> None:
    """With graphs `.grad` has memory of its own, to which every micro-batch is added."""
    experiment = tiny_preset("mnist")
    plain, placed = run_of(experiment, stage), run_of(experiment, stage)
    placed.graphs = Graphs(used=True)
    assert list(trained(plain, experiment)) == list(trained(placed, experiment))
    for name, value in plain.objective.state_dict().items():
        assert torch.equal(placed.objective.state_dict()[name], value), name
    before = {name: p.grad for name, p in placed.objective.named_parameters()}
    placed.graphs.clear_gradients(placed.optimizer)
    for name, parameter in placed.objective.named_parameters():
        assert parameter.grad is before[name]
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.slow  # compiling takes minutes on a busy machine
@pytest.mark.timeout(900)
@needs_compiler
@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_compiled_steps_are_plain_ones_and_nothing_is_compiled_twice(stage: str) -> None:
    """Also where draws turn hard, and where the last validation batch is smaller."""
    experiment = plain_dropout()
    torch._dynamo.reset()
    plain, compiled = run_of(experiment, stage), run_of(experiment, stage, compiled=True)
    for ours, theirs in zip(trained(compiled, experiment), trained(plain, experiment), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        list(trained(compiled, experiment))
    assert counters["stats"]["unique_graphs"] == graphs


@needs_gpu
@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_graphs_on_a_gpu_give_the_results_of_plain_steps(stage: str) -> None:
    """Gradients of two micro-batches add up, though a graph writes both to the same memory."""
    experiment = plain_dropout()
    plain = run_of(experiment, stage, device="cuda")
    compiled = run_of(experiment, stage, compiled=True, device="cuda")
    for _ in range(3):  # graphs are recorded at the second call and replayed at the third
        for ours, theirs in zip(trained(compiled, experiment), trained(plain, experiment), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-2)


@pytest.mark.parametrize("preset", ["mnist", "cifar10", "authors"])
def test_weights_in_channels_last_give_the_same_networks(preset: str) -> None:
    experiment = tiny_preset(preset)
    x = batch_of(experiment).images.double() / 255
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        objective: Any = objective_of(experiment, "vae").double()
        model = objective.model.to(memory_format=layout)
        q = model.posterior(x)
        outputs = [q.whether, q.what, model.decoder(x)]
        sum(output.square().mean() for output in outputs).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({"whether": q.whether, "what": q.what, "output": outputs[2], **gradients})
    moved = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    assert moved
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)
