"""Precision and batches of a GPU; a CPU is left alone. What needs a GPU is skipped without one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from npdraw_dist.config.load import build
from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.config.training import Precision
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.training.device import (
    autocast,
    autocast_dtype,
    flushed_denormals,
    prepare_ahead,
    refuse_tf32,
    usable,
)
from npdraw_dist.training.loop import Run
from tests.helpers.gpu import needs_gpu
from tests.helpers.local_context import LocalContext

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_gpu_that_torch_does_not_find_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives the device of a worker by its resources, which can be pretended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable(torch.device("cuda:0")) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert usable(torch.device("cuda:0")) == torch.device("cuda:0")
    assert usable(CPU) == CPU


def experiment(order: str = "aligned", **vae: object) -> Experiment:
    sizes = {"width": 16, "depth": 1, "attention_heads": 2}
    small = {"encoder_width": 8, "decoder_width": 8, **vae}
    return build({"bank": {"size": 5}, "prior": sizes, "vae": small, "parse": {"order": order}})


def objective(order: str = "aligned", **vae: object) -> VAEObjective:
    torch.manual_seed(0)
    settings = experiment(order, **vae)
    model = NPDraw(ModelSpec.of(settings))
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    return VAEObjective(model, settings.vae)


def batch(n: int = 6, steps: int = 36, order: str = "aligned") -> Batch:
    generator = torch.Generator().manual_seed(1)
    what = torch.randint(5, (n, steps), generator=generator)
    grid = experiment().canvas_grid
    whether, where = ORDERS[order].arrange(what > 1, what.float(), grid, steps)
    z = PartSequence(whether, where.clone(), what)
    return Batch.of(torch.randint(256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8), z)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_cpu_computes_in_float32(precision: Precision) -> None:
    assert autocast_dtype(CPU, precision) is None
    with autocast(CPU, None):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == torch.float32


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A GPU of this compute capability; torch says of all of them that they have bfloat16, or emulate it."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


GPUS = [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 0), True)]


@pytest.mark.parametrize(("capability", "native"), GPUS)
def test_a_gpu_computes_in_bfloat16_if_it_need_not_emulate_it(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 is 7.0, T4 7.5, A100 8.0, H100 9.0."""
    pretend_gpu(monkeypatch, capability)
    assert autocast_dtype(CUDA, "auto") == (torch.bfloat16 if native else None)
    assert autocast_dtype(CUDA, "float32") is None
    if native:
        assert autocast_dtype(CUDA, "bfloat16") == torch.bfloat16


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_bfloat16_is_refused_where_it_is_emulated(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, capability)
    config = TrainConfig(precision="bfloat16")
    with pytest.raises(
        UserError, match=r"^train\.precision is bfloat16, but Some GPU .*take auto or float32$"
    ):
        Run(objective(), config, 0, LocalContext(device="cuda"))


def test_a_gpu_of_amd_is_not_judged_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (7, 0))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert autocast_dtype(CUDA, "auto") == torch.bfloat16


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a program before has left it: on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32")
def test_float32_products_of_a_gpu_are_never_in_tf32() -> None:
    refuse_tf32(CUDA)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32")
def test_a_cpu_leaves_the_settings_of_gpus_alone() -> None:
    refuse_tf32(CPU)
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("before", [False, True])
def test_numbers_that_are_not_normal_are_0_in_a_block_alone(before: bool) -> None:
    def halves() -> list[bool]:
        number = torch.tensor([2e-38])
        torch.set_flush_denormal(before)
        outside = float(number / 2)
        with flushed_denormals():
            inside = float(number / 2)
        return [half > 0 for half in (outside, inside, float(number / 2))]

    with ThreadPoolExecutor(1) as thread:  # a setting of a thread: that of the tests stays as it is
        assert thread.submit(halves).result() == [not before, False, not before]


def test_on_a_cpu_batches_are_taken_as_they_come() -> None:
    steps = iter([[(0, batch())]])
    assert prepare_ahead(steps, CPU) is steps


@pytest.mark.parametrize("order", ["aligned", "path"])
@pytest.mark.parametrize("latents", [0, 4])
@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_losses_are_float32_where_products_are_not(order: str, latents: int, progress: float) -> None:
    """bfloat16 rounds weights and activations to three digits; the loss itself is float32."""
    found: list[dict[str, Tensor]] = []
    for dtype in (None, torch.bfloat16):
        trained = objective(order, latents=latents)
        # Draws of q are compared: their parts would differ where two are nearly as likely.
        trained.model.temperature.data.fill_(0.05)
        with torch.no_grad(), autocast(CPU, dtype):
            loss, metrics = trained(batch(order=order), progress, torch.Generator().manual_seed(2))
        found.append({"loss": loss, **metrics})
    for name, value in found[0].items():
        assert found[1][name].dtype == torch.float32, name
        torch.testing.assert_close(found[1][name], value, rtol=0.01, atol=0.5)


@needs_gpu
def test_pinned_batches_are_the_same() -> None:
    steps = [[(0, batch(3)), (1, batch(4))] for _ in range(5)]
    for mine, theirs in zip(steps, prepare_ahead(iter(steps), torch.device("cuda")), strict=True):
        for (index, a), (other, b) in zip(mine, theirs, strict=True):
            assert index == other
            assert b.images.is_pinned()
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.z.what, b.z.what)


@needs_gpu
@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("relaxed_share", [0.0, 1.0])
def test_a_step_does_not_wait_for_the_gpu(order: str, relaxed_share: float) -> None:
    """`test_static_step` counts the same on a CPU."""
    config = TrainConfig.model_validate({"batch_size": 12, "micro_batch": 6})
    trained = objective(order)
    trained.relaxed_share = relaxed_share
    run = Run(trained, config, 0, LocalContext(device="cuda"))
    chunks = [(0, batch(order=order).pin_memory()), (1, batch(order=order).pin_memory())]
    run.update(0, chunks, 1000)  # moments and tables are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.update(1, chunks, 1000)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.first_broken_step() is None
