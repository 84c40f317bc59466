"""Precision and batches of a GPU; a CPU is left alone. What needs a GPU is skipped without one."""

import pytest
import torch
from torch import Tensor, nn

from npdraw_dist.config.load import build
from npdraw_dist.config.schema import Experiment, Precision, TrainConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.training.context import LocalContext
from npdraw_dist.training.device import autocast, autocast_dtype, prepare_ahead
from npdraw_dist.training.loop import Run
from tests.helpers.gpu import needs_gpu

CPU = torch.device("cpu")


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
        trained = objective(order, latents=latents, hard_share=0.5)
        # Draws of q are compared: their parts would differ where two are nearly as likely.
        trained.model.temperature.data.fill_(0.05)
        with torch.no_grad(), autocast(CPU, dtype):
            loss, metrics = trained(batch(order=order), progress, torch.Generator().manual_seed(2))
        found.append({"loss": loss, **metrics})
    for name, value in found[0].items():
        assert found[1][name].dtype == torch.float32, name
        rtol, atol = (0.05, 2.0) if progress < 0.5 else (0.1, 10.0)
        torch.testing.assert_close(found[1][name], value, rtol=rtol, atol=atol)


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
def test_a_step_does_not_wait_for_the_gpu() -> None:
    config = TrainConfig.model_validate({"batch_size": 12, "micro_batch": 6})
    run = Run(objective(), config, 0, LocalContext(device="cuda"))
    chunks = [(0, batch().pin_memory()), (1, batch().pin_memory())]
    run.update(0, chunks, 1000)  # moments and tables are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.update(1, chunks, 1000)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.first_broken_step() is None
