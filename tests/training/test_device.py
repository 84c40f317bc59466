"""Precision and batches on a GPU, and no change on a CPU. Tests that need a GPU are skipped without one."""

import pytest
import torch
from torch import nn

from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import refuse_tf32
from npdraw_dist.training.device import (
    CPU_ROWS,
    MicroBatch,
    autocast,
    autocast_dtype,
    prepare_ahead,
    usable,
)
from npdraw_dist.training.loop import Run
from tests.helpers.gpu import needs_gpu
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
    """A GPU of this compute capability. For any of them, torch says that it has or emulates bfloat16."""
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
    """Also if the program had turned TF32 on. A run on a CPU leaves the settings of GPUs."""
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
    steps = [(first, batch[first:]) for first in range(5)]
    for (index, a), (other, b) in zip(steps, prepare_ahead(iter(steps), CUDA), strict=True):
        assert index == other
        assert b.images.is_pinned()
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.z.what, b.z.what)


def pretend_memory(monkeypatch: pytest.MonkeyPatch, of_row: int, free: int) -> None:
    """A GPU on which 16 rows take `of_row` bytes each, and `free` bytes are left after them."""
    total = 80 << 30
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 16 * of_row)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))


@pytest.mark.parametrize(
    ("free", "share", "rows"),
    [
        (80 << 30, 1.0, 4096),  # 0.6 of 80 GB in rows of 10 MB
        (80 << 30, 0.25, 1024),  # four workers on a GPU
        (8 << 30, 1.0, 256),  # another program has the rest
        (1 << 20, 1.0, 1),  # never 0
    ],
)
def test_an_automatic_micro_batch_is_what_the_memory_allows(
    free: int, share: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_memory(monkeypatch, 10 << 20, free)
    micro_batch = MicroBatch("auto", CUDA, share)
    assert micro_batch.rows == 16
    with micro_batch.computing(16):
        pass
    assert micro_batch.rows == rows
    with micro_batch.computing(rows):  # only the first measures
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1 << 40)
    assert micro_batch.rows == rows


def test_a_given_micro_batch_stays_and_a_cpu_has_its_own() -> None:
    assert MicroBatch(7, CUDA).rows == 7
    assert MicroBatch("auto", CPU).rows == CPU_ROWS


def test_too_little_memory_of_a_gpu_is_one_line_that_names_the_micro_batch() -> None:
    message = r"a micro-batch of 512 rows; lower --train\.micro_batch"
    with pytest.raises(UserError, match=message), MicroBatch(512, CUDA).computing(512):
        raise torch.OutOfMemoryError("CUDA out of memory")
