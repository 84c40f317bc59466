"""Means over all images do not depend on batches and ranks; the learning rate."""

import numpy as np
import pytest
import torch

from npdraw_dist.training.meters import Meters, learning_rate_factor


def test_the_mean_is_in_double_whatever_the_batches_and_ranks() -> None:
    values = torch.randn(11, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for cuts in ([11], [1, 10], [4, 4, 3]):
        ranks = [Meters(), Meters()]
        for index, piece in enumerate(values.split(cuts)):
            ranks[index % 2].add({"nll": piece, "squares": piece**2})
            ranks[1 - index % 2].add({"nll": piece[:0], "squares": piece[:0]})
        total = ranks[0].stacked() + ranks[1].stacked()
        assert total.dtype == torch.float64
        assert not total.requires_grad
        assert ranks[0].names() == ["nll", "squares"]
        means = (total[:, 0] / total[:, 1]).tolist()
        expected = [float(values.detach().double().mean()), float((values.detach() ** 2).double().mean())]
        assert means == pytest.approx(expected, abs=1e-12)


def test_names_may_come_and_go_and_all_entries_count() -> None:
    """The metrics of relaxed and of hard draws differ."""
    meters = Meters()
    meters.add({"a": torch.ones(2), "b": torch.ones(2)})
    meters.add({"a": torch.tensor([3.0]), "c": torch.tensor([[5.0, 2.0]])})
    assert meters.names() == ["a", "b", "c"]
    assert meters.stacked().tolist() == [[5.0, 3.0], [2.0, 2.0], [7.0, 2.0]]
    meters.reset()
    assert meters.names() == []


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


def test_a_rate_that_stays_and_falls_on_a_line() -> None:
    rates = [learning_rate_factor(x, 1000, 100, 400) for x in range(1001)]
    assert rates[:3] == pytest.approx([1 / 101, 2 / 101, 3 / 101])
    assert set(rates[100:601]) == {1.0}
    assert np.diff(rates[600:]) == pytest.approx(-1 / 400)
    assert rates[1000] == 0
    assert learning_rate_factor(5000, 1000, 100, 400) == 0
    assert learning_rate_factor(0, 1000, 0, 0) == 1  # no warm-up, no fall
    assert learning_rate_factor(990, 1000, 0, 0) == 1
