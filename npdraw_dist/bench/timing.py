"""How the sections take times: medians of runs in turns, so that a busy moment meets all that is compared."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What `function` returns, and the seconds that it takes on the device that there is."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def median_seconds(functions: Sequence[Callable[[], object]], repeats: int, warm_up: int = 0) -> list[float]:
    """The median seconds of each function over `repeats` turns, after `warm_up` turns that do not count."""
    turns = [[timed(function)[1] for function in functions] for _ in range(warm_up + repeats)]
    return [statistics.median(taken) for taken in zip(*turns[warm_up:], strict=True)]
