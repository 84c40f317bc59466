"""An object in a process of its own, so that its memory is its own."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from npdraw_dist.core.errors import UserError

_made: Any = None


def _make(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _made
    _made = make(*arguments)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_made, method)(*arguments)


class FreshProcess:
    """What `make(*arguments)` makes, in a new process that ends with the block; `call` calls its methods.

    without: environment variables of this process that the new one is not given.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, without: Iterable[str] = ()) -> None:
        self.name = f"{make.__name__}{tuple(a for a in arguments if isinstance(a, str | int))}"
        # Spawned, for a fork would begin with all of this process's memory.
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _make, (make, arguments))
        hidden = {name: os.environ.pop(name) for name in without if name in os.environ}
        self._pool.submit(int)  # starts it now, beside others
        os.environ.update(hidden)

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def wait(self) -> None:
        """Until it is made: nothing is measured beside one that still loads, or compiles."""
        self._result(self._pool.submit(int))

    def call(self, method: str, *arguments: Any) -> Any:
        """What its method `method` returns or raises; raises UserError where the process was killed."""
        return self._result(self._pool.submit(_call, method, arguments))

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {self.name} was killed, for want of memory? (--against none measures "
                "without the dense reference, --train.micro_batch 16 with less)"
            ) from None
