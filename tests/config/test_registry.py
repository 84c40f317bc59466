"""Every registered name has its code, of the right kind."""

import torch

from npdraw_dist.config.registry import KINDS, LIKELIHOODS, ORDERS, SOURCES, load
from npdraw_dist.core import orders
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.nn.likelihoods import Likelihood
from npdraw_dist.nn.npdraw import NPDraw


def test_a_registered_name_has_its_code() -> None:
    for source in SOURCES.values():
        assert callable(load(source.code))
    for entry in LIKELIHOODS.values():
        likelihood = load(entry.code)(1 if entry.binary else 3)
        assert isinstance(likelihood, Likelihood)
        assert likelihood.canvas_start().weight.shape[0] == likelihood.parameters_per_pixel
    for kind in KINDS.values():
        found = load(kind.code)
        assert issubclass(found, torch.nn.Module)
        assert found is NPDraw or issubclass(found, Baseline)
        assert not getattr(found, "__abstractmethods__", None)
    assert {name: order.aligned for name, order in orders.ORDERS.items()} == ORDERS
