"""What a worker keeps of a file for the next shard of it."""

import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


def kept(maxsize: int) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """`lru_cache` for threads that read shards of one file: the first one makes it, and the others wait."""

    def decorated(make: Callable[Given, Made]) -> Callable[Given, Made]:
        lock = threading.RLock()
        cached: Callable[Given, Made] = lru_cache(maxsize)(make)  # type: ignore[assignment]  # of hashables

        @wraps(make)
        def get(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            with lock:
                return cached(*args, **kwargs)

        return get

    return decorated
