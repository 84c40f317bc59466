"""Means over all images, however they were cut into batches and ranks."""

import numpy as np
import pytest
import torch

from npdraw_dist.core.meters import Meters
from tests.helpers.kernels import KernelCounter


def means(meters: Meters, stacked: torch.Tensor) -> dict[str, float]:
    return {
        name: total / count for name, (total, count) in zip(meters.names(), stacked.tolist(), strict=True)
    }


def test_mean_does_not_depend_on_the_batches() -> None:
    values = torch.randn(11, generator=torch.Generator().manual_seed(0))
    for cuts in ([11], [1, 10], [4, 4, 3]):
        meters = Meters()
        for piece in values.split(cuts):
            meters.add({"nll": piece})
        assert means(meters, meters.stacked())["nll"] == pytest.approx(
            float(values.double().mean()), abs=1e-12
        )


def test_two_ranks_reduce_once() -> None:
    a, b = torch.rand(3), torch.rand(7)
    ranks = [Meters(), Meters()]
    for meters, values in zip(ranks, (a, b), strict=True):
        meters.add({"x": values, "squares": values**2})
    total = ranks[0].stacked() + ranks[1].stacked()
    both = np.concatenate([a, b]).astype(np.float64)
    found = means(ranks[0], total)
    assert found["x"] == pytest.approx(both.mean())
    assert found["squares"] == pytest.approx((both**2).mean(), rel=1e-6)
    assert ranks[0].names() == ["squares", "x"]


def test_float32_values_are_summed_in_double_and_without_graph() -> None:
    meters = Meters()
    meters.add({"x": torch.full((3,), 2.0**24, requires_grad=True)})
    meters.add({"x": torch.ones(1)})
    assert meters.stacked().dtype == torch.float64
    assert not meters.stacked().requires_grad
    assert means(meters, meters.stacked())["x"] == (3 * 2.0**24 + 1) / 4


def test_any_shape_counts_its_entries_and_reset_forgets() -> None:
    meters = Meters()
    meters.add({"x": torch.tensor([[1.0, 2.0], [3.0, 6.0]])})
    assert meters.stacked().tolist() == [[12.0, 4.0]]
    meters.reset()
    assert meters.names() == []


def test_names_may_come_and_go() -> None:
    """The metrics of relaxed and of hard draws differ."""
    meters = Meters()
    meters.add({"a": torch.ones(2), "b": torch.ones(2)})
    meters.add({"a": torch.tensor([3.0]), "c": torch.tensor([[5.0]])})
    assert meters.names() == ["a", "b", "c"]
    assert meters.stacked().tolist() == [[5.0, 3.0], [2.0, 2.0], [5.0, 1.0]]


def test_sums_that_were_saved_go_on_bitwise() -> None:
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) / 3
    whole, part, rest = Meters(), Meters(), Meters()
    for index, row in enumerate(values):
        whole.add({"x": row, "y": row**2})
        (part if index < 2 else rest).add({"x": row, "y": row**2})
        if index == 1:
            saved = dict(zip(part.names(), part.stacked().tolist(), strict=True))
            rest.restore(saved, torch.device("cpu"))
    assert torch.equal(rest.stacked(), whole.stacked())


def test_a_rank_that_restores_names_alone_adds_nothing() -> None:
    meters = Meters()
    meters.restore({"x": [0.0, 0.0], "y": [0.0, 0.0]}, torch.device("cpu"))
    meters.add({"x": torch.ones(3)})
    assert meters.stacked().tolist() == [[3.0, 3.0], [0.0, 0.0]]


def test_all_metrics_are_added_in_few_kernels() -> None:
    """One by one they took six each."""
    values = {name: torch.rand(8) for name in "abcdefgh"}
    meters = Meters()
    meters.add(values)
    with KernelCounter() as counter:
        meters.add(values)
    assert counter.kernels.total() <= 4
    assert not counter.waits
