"""Tests that need a GPU. Alone they are run by `python -m pytest -m gpu`."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., object])


def needs_gpu(test: Test) -> Test:
    """Marks a test `gpu`, and skips it where there is none."""
    skipped = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    marked: Test = pytest.mark.gpu(skipped(test))
    return marked
