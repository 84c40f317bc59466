"""Muon's step: the polar factor of the momentum, AdamW for the rest, nothing where the gradient is broken."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from npdraw_dist.training import checkpoint
from npdraw_dist.training.muon import Muon, orthogonal

OPTIONS: dict[str, Any] = {"betas": (0.9, 0.99), "fused": True}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 32, 3), nn.Linear(16, 24), nn.Linear(24, 4))


def groups(module: nn.Module, decay: float = 0.0) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    return [
        {"params": matrices, "lr": 0.1, "weight_decay": decay, "matrices": True},
        {"params": vectors, "lr": 0.1, "weight_decay": 0.0, "matrices": False},
    ]


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_singular_values_are_near_one_and_vectors_stay() -> None:
    x = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    found = orthogonal(x)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ found @ vh.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4)
    assert inner.diagonal(dim1=1, dim2=2).min() > 0.6
    assert inner.diagonal(dim1=1, dim2=2).max() < 1.3


@pytest.mark.parametrize("shape", [(32, 80), (80, 32), (32, 16, 3, 3)])
def test_a_step_is_as_large_as_one_of_adam(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(shape))
    before = weight.detach().clone()
    weight.grad = torch.randn(shape)
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0, "matrices": True}], **OPTIONS).step()
    size = (weight - before).square().mean().sqrt()
    assert size.item() == pytest.approx(0.1 * 0.2, rel=0.25)


def test_it_goes_down_and_decays() -> None:
    weight = nn.Parameter(torch.randn(16, 16))
    target = torch.randn(16, 16)
    optimizer = Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0, "matrices": True}], **OPTIONS)
    losses = []
    for _ in range(400):
        loss = (weight - target).square().sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]

    still = nn.Parameter(torch.ones(16, 16))
    still.grad = torch.zeros(16, 16)
    Muon([{"params": [still], "lr": 0.1, "weight_decay": 0.5, "matrices": True}], **OPTIONS).step()
    assert torch.allclose(still, torch.full((16, 16), 0.95))


def test_small_matrices_and_vectors_are_adamws() -> None:
    ours, theirs = net(), net()
    muon, adam = Muon(groups(ours), **OPTIONS), AdamW(groups(theirs), **OPTIONS)
    for seed in (1, 2):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        muon.step()
        adam.step()
    same = {
        name: torch.equal(own, other)
        for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True)
    }
    large = {"0.weight", "1.weight"}  # the last layer has 4 rows
    assert same == {name: name not in large for name in same}


@pytest.mark.parametrize("first", [True, False])
def test_a_broken_gradient_changes_nothing(first: bool) -> None:
    module = net()
    optimizer = Muon(groups(module, decay=0.1), **OPTIONS)
    give_gradients(module, 1)
    vars(optimizer).update(found_inf=torch.tensor(0.0), grad_scale=None)
    if not first:
        optimizer.step()
    before = values(module)
    moments = [s["momentum"].clone() for s in optimizer.state.values() if "momentum" in s]
    give_gradients(module, 2)
    for parameter in module.parameters():
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = math.nan
    vars(optimizer).update(found_inf=torch.tensor(1.0))
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, values(module), strict=True))
    now = [s["momentum"] for s in optimizer.state.values() if "momentum" in s]
    assert all(torch.isfinite(m).all() for m in now)
    assert first or all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))


def test_a_checkpoint_goes_on_bit_by_bit(tmp_path: Any) -> None:
    module = net()
    optimizer = Muon(groups(module), **OPTIONS)
    give_gradients(module, 1)
    optimizer.step()
    checkpoint.save(tmp_path, module, optimizer, {"step": 1})
    other = net()
    resumed = Muon(groups(other), **OPTIONS)
    checkpoint.restore(tmp_path, other, resumed)
    for each, stepper in ((module, optimizer), (other, resumed)):
        give_gradients(each, 2)
        stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(values(module), values(other), strict=True))
