"""Means over all images, however they were cut into batches and ranks."""

import numpy as np
import pytest
import torch

from npdraw_dist.core.meters import Meters


def test_mean_does_not_depend_on_the_batches() -> None:
    values = torch.randn(11, generator=torch.Generator().manual_seed(0))
    for cuts in ([11], [1, 10], [4, 4, 3]):
        meters = Meters()
        for piece in values.split(cuts):
            meters.add({"nll": piece})
        assert meters.means()["nll"] == pytest.approx(float(values.double().mean()), abs=1e-12)


def test_two_ranks_reduce_once() -> None:
    a, b = torch.rand(3), torch.rand(7)
    ranks = [Meters(), Meters()]
    for meters, values in zip(ranks, (a, b), strict=True):
        meters.add({"x": values, "squares": values**2})
    total = ranks[0].stacked() + ranks[1].stacked()
    both = np.concatenate([a, b]).astype(np.float64)
    means = ranks[0].means(total)
    assert means["x"] == pytest.approx(both.mean())
    assert means["squares"] == pytest.approx((both**2).mean(), rel=1e-6)
    assert ranks[0].names() == ["squares", "x"]


def test_float32_values_are_summed_in_double_and_without_graph() -> None:
    meters = Meters()
    meters.add({"x": torch.full((3,), 2.0**24, requires_grad=True)})
    meters.add({"x": torch.ones(1)})
    assert meters.stacked().dtype == torch.float64
    assert not meters.stacked().requires_grad
    assert meters.means()["x"] == (3 * 2.0**24 + 1) / 4


def test_any_shape_counts_its_entries_and_reset_forgets() -> None:
    meters = Meters()
    meters.add({"x": torch.tensor([[1.0, 2.0], [3.0, 6.0]])})
    assert meters.stacked().tolist() == [[12.0, 4.0]]
    meters.reset()
    assert meters.names() == []
