"""Every registered name has its code, of the right kind."""

from collections.abc import Callable

import pytest
import torch

from npdraw_dist.config.registry import KINDS, LIKELIHOODS, ORDERS, SOURCES, load
from npdraw_dist.core import orders
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.nn.likelihoods import Likelihood
from npdraw_dist.nn.npdraw import NPDraw


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_its_function(name: str) -> None:
    assert isinstance(load(SOURCES[name].code), Callable)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_is_whole(name: str) -> None:
    likelihood = load(LIKELIHOODS[name].code)(1 if LIKELIHOODS[name].binary else 3)
    assert isinstance(likelihood, Likelihood)
    assert likelihood.canvas_start().weight.shape[0] == likelihood.parameters_per_pixel


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_its_class(name: str) -> None:
    found = load(KINDS[name].code)
    assert issubclass(found, torch.nn.Module)
    assert found is NPDraw or issubclass(found, Baseline)
    assert not getattr(found, "__abstractmethods__", None)


def test_an_order_is_named_as_it_is() -> None:
    assert {name: order.aligned for name, order in orders.ORDERS.items()} == ORDERS
