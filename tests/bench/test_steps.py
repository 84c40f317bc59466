"""Counted operations against a count by hand, and objects in their own processes."""

import os
import signal

import numpy as np
import pytest
import torch

from npdraw_dist.bench import machine, operations
from npdraw_dist.bench.operations import Counter, FusedAttention, count
from npdraw_dist.bench.steps import Trainer, WorkerProcess, flop_counter
from npdraw_dist.bench.workload import Subject, Workload
from npdraw_dist.config.load import build
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.prior import Prior
from npdraw_dist.system.errors import UserError


def test_operations_of_the_prior() -> None:
    batch, width, depth, heads, parts, mlp = 3, 16, 2, 2, 5, 64
    settings = {"width": width, "depth": depth, "attention_heads": heads, "table": "joint"}
    prior = Prior(ModelSpec.of(build({"bank": {"size": parts}, "prior": settings})))
    steps = prior.steps
    zeros = torch.zeros(batch, steps, dtype=torch.int64)
    z = PartSequence(torch.rand(batch, steps) < 0.5, torch.arange(steps).repeat(batch, 1), zeros)
    with flop_counter() as counter:
        prior.log_prob(z).sum().backward()
    # A row each of what a token is multiplied by, forward: qkv, out, two of the MLP; then last and heads.
    block = width * 3 * width + width * width + 2 * width * mlp
    products = depth * block + width * width + width + width * width + width * parts
    linear = 2 * batch * steps * products
    attention = depth * 2 * batch * steps * steps * width  # one of the two products, all heads
    assert counter.get_total_flops() == (1 + 2) * linear + (2 + 5) * attention


def test_a_hard_step_is_past_the_relaxed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # a Trainer sets it for its process
    prior, vae = {"width": 16, "depth": 1}, {"encoder_width": 16, "decoder_width": 16}
    experiment = build({"bank": {"size": 5}, "prior": prior, "vae": vae})
    trainer = Trainer(Subject.of(Workload(experiment, quick=True), 64), "vae", 1)
    shares: list[float] = []
    monkeypatch.setattr(trainer.run, "update", lambda step, chunks, images: shares.append(step / images))
    trainer.update(64)
    trainer.update(64, hard=True)
    assert shares[0] == 0
    assert experiment.vae.relaxed_share < shares[1] * experiment.train.batch_size < 1


def test_operations_and_bytes_that_a_gpu_would_start() -> None:
    a, b = torch.empty(4, 8, device="meta"), torch.empty(8, 2, device="meta")
    with Counter() as counter:
        product = a @ b  # reads 32 and 16 numbers, writes 8
        product.view(8).t().add_(1)  # views start nothing; the sum reads and writes 8 numbers
        torch.empty_like(product)
    assert (counter.operations, counter.bytes) == (2, 4 * (32 + 16 + 8 + 8 + 8))


def test_attention_is_one_operation_as_on_a_gpu() -> None:
    q, k, v = torch.empty(3, 2, 4, 6, 8, device="meta", requires_grad=True).unbind()
    with Counter() as counter, FusedAttention():
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert counter.operations == 1


def test_a_step_is_counted_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All noise takes one hash. More rows take more bytes, but no more operations."""
    experiment = build({"bank": {"size": 5}, "prior": {"depth": 1, "dropout": 0.1}})
    found = count(experiment, 0.0)
    monkeypatch.setattr(operations, "ROWS", 2 * operations.ROWS)
    doubled = count(experiment, 0.0)
    assert doubled.operations == found.operations
    assert 1.9 < doubled.bytes / found.bytes < 2
    monkeypatch.setattr(operations, "Ahead", lambda: None)
    assert count(experiment, 0.0).operations > found.operations + 50


class Megabytes:
    """An object of some size."""

    def __init__(self, megabytes: int) -> None:
        self.before = machine.memory_mb()
        self.data = np.ones(megabytes << 20, np.uint8)

    def grown(self) -> float:
        return machine.peak_mb() - self.before

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self, message: str) -> None:
        raise ValueError(message)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU its memory is measured")
def test_the_memory_of_a_fresh_process_is_its_own() -> None:
    mine = np.ones(300 << 20, np.uint8)
    # 72 MiB, so that over 63 are left when the kernel takes back some pages of the start meanwhile.
    with WorkerProcess(Megabytes, 72) as fresh:
        assert 63 < fresh.call("grown") < 150
        with pytest.raises(ValueError, match="on purpose"):
            fresh.call("fail", "on purpose")
        with pytest.raises(UserError, match=r"Megabytes\(72,\) was killed"):
            fresh.call("die")
    assert mine.any()
