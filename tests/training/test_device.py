"""Precision and batches of a GPU; a CPU is left alone. What needs a GPU is skipped without one."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import refuse_tf32
from npdraw_dist.training.device import (
    Graphs,
    autocast,
    autocast_dtype,
    prepare_ahead,
    usable,
)
from npdraw_dist.training.loop import Run
from npdraw_dist.training.workers import has_compiler
from tests.helpers.gpu import needs_gpu, on_gpu
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_presets import batch_of, objective_of, tiny_preset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_gpu_that_torch_does_not_find_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives the device of a worker by its resources, which can be pretended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable(torch.device("cuda:0")) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert usable(torch.device("cuda:0")) == torch.device("cuda:0")
    assert usable(CPU) == CPU


def test_a_cpu_computes_in_float32() -> None:
    assert autocast_dtype(CPU, "bfloat16") is None
    with autocast(CPU, None):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == torch.float32


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None = None) -> None:
    """A GPU of this compute capability; torch says of all of them that they have bfloat16, or emulate it."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.parametrize(
    ("capability", "hip", "native"),
    [
        ((7, 5), None, False),  # T4
        ((8, 0), None, True),  # A100
        ((7, 0), "6.2", True),  # a GPU of AMD is not judged by its number
    ],
)
def test_a_gpu_computes_in_bfloat16_if_it_need_not_emulate_it(
    capability: tuple[int, int], hip: str | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, capability, hip)
    assert autocast_dtype(CUDA, "auto") == (torch.bfloat16 if native else None)
    assert autocast_dtype(CUDA, "float32") is None
    if native:
        assert autocast_dtype(CUDA, "bfloat16") == torch.bfloat16


def test_bfloat16_is_refused_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (7, 5))
    config = TrainConfig(precision="bfloat16")
    with pytest.raises(UserError, match=r"^train\.precision is bfloat16, but Some GPU "):
        Run(objective_of(tiny_preset("mnist"), "vae"), config, 0, LocalContext(device="cuda"))


def test_float32_products_of_a_gpu_are_never_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program before has left it on. A CPU leaves the settings of GPUs alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        refuse_tf32(CPU)
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
        refuse_tf32(CUDA)
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@needs_gpu
def test_pinned_batches_are_the_same() -> None:
    batch = batch_of(tiny_preset("mnist"), 7)
    steps = [[(0, batch[:3]), (3, batch[3:])] for _ in range(5)]
    for mine, theirs in zip(steps, prepare_ahead(iter(steps), CUDA), strict=True):
        for (index, a), (other, b) in zip(mine, theirs, strict=True):
            assert index == other
            assert b.images.is_pinned()
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.z.what, b.z.what)


STEPS = [(0, 1 << 20), (1, 1 << 20), (1, 9), (1, 9)]  # relaxed draws, then hard ones


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
    chunks = [(0, batch_of(experiment, 4)), (4, batch_of(experiment, 8)[4:])]
    for step, images in STEPS:
        run.update(step, chunks, images)
        valid = batch_of(experiment, 6)
        yield run.validate(valid)


def test_gradients_in_place_give_the_same_weights() -> None:
    """With graphs `.grad` has memory of its own, to which every micro-batch is added."""
    experiment = tiny_preset("mnist")
    plain, placed = run_of(experiment, "vae"), run_of(experiment, "vae")
    placed.graphs = Graphs(used=True)
    assert list(trained(plain, experiment)) == list(trained(placed, experiment))
    for name, value in plain.objective.state_dict().items():
        assert torch.equal(placed.objective.state_dict()[name], value), name
    before = {name: p.grad for name, p in placed.objective.named_parameters()}
    placed.graphs.clear_gradients(placed.optimizer)
    for name, parameter in placed.objective.named_parameters():
        assert parameter.grad is before[name]
        assert parameter.grad is None or not parameter.grad.any()


COMPILED = [  # compiling takes minutes on a busy machine
    pytest.param("cpu", 2e-3, marks=pytest.mark.slow),
    pytest.param("cuda", 1e-2, marks=on_gpu),
]


@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize(("device", "tolerance"), COMPILED)
@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_compiled_steps_are_plain_ones_and_nothing_is_compiled_twice(
    device: str, tolerance: float, stage: str
) -> None:
    """Also where draws turn hard, and where the last validation batch is smaller.

    On a GPU gradients of two micro-batches add up, though a graph, which is recorded at its second call,
    writes both to the same memory.
    """
    experiment = plain_dropout()
    torch._dynamo.reset()
    plain = run_of(experiment, stage, device=device)
    compiled = run_of(experiment, stage, compiled=True, device=device)
    assert compiled.objective.state_dict().keys() == plain.objective.state_dict().keys()
    for _ in range(3 if device == "cuda" else 1):
        for ours, theirs in zip(trained(compiled, experiment), trained(plain, experiment), strict=True):
            assert ours == pytest.approx(theirs, rel=tolerance)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        list(trained(compiled, experiment))
    assert counters["stats"]["unique_graphs"] == graphs
