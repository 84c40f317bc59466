"""Tests that need a GPU. Alone they are run by `python -m pytest -m gpu`."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., object])
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def needs_gpu(test: Test) -> Test:
    """Marks a test `gpu`, and skips it where there is none."""
    for mark in on_gpu:
        test = mark(test)
    return test
