"""The engine of a replica, and threads beside its event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.service import Result

THREADS = 2  # so that an animation does not delay a decoding


class Threads:
    """What both kinds of replica have: all of `Service` but the decoding."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(THREADS)
        self._begun: dict[Callable[[], Any], Future[Any]] = {}

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def once(self, function: Callable[[], Result]) -> Result:
        # A client that goes away must not cancel what others wait for.
        return await asyncio.shield(asyncio.wrap_future(self._begin(function)))

    def _begin(self, function: Callable[[], Result]) -> Future[Result]:
        """Starts it, unless it runs or is done; again if it failed."""
        found = self._begun.get(function)
        if found is None or (found.done() and found.exception() is not None):
            found = self._begun[function] = self._threads.submit(function)
        return found
