"""Runs requests on one copy of the model, in threads and in batches of drawings."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.schemas import DrawingResponse

BATCH = 32  # drawings decoded at once
REQUEST_S = 60  # time limit of a request
SHUTDOWN_S = 5  # time that a replica has to finish its requests
THREADS = 2  # with one thread, an animation would delay a decoding
ONGOING, QUEUED = 32, 64  # limits on a replica's running and waiting requests; others get 503

Result = TypeVar("Result")


class Replica:
    """A model with THREADS threads in addition to the event loop of its process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(THREADS)
        self._begun: dict[Callable[[], Any], Future[Any]] = {}
        self._waiting: list[tuple[Drawings, asyncio.Future[DrawingResponse]]] = []
        self._responding: asyncio.Task[None] | None = None

    def warm_up(self) -> None:
        """Makes the slow first call, and starts to compute the examples, which the page requests first."""
        self.engine.responses([self.engine.model.draw(1, seed=0)])
        self.begin(self.engine.examples)

    async def respond(self, drawing: Drawings, dropped: int = 0) -> DrawingResponse:
        """The response of one drawing, decoded in one batch with the drawings of other requests.

        Requests that arrive while a batch is decoded form the next batch.
        """
        answer: asyncio.Future[DrawingResponse] = asyncio.get_running_loop().create_future()
        self._waiting.append((drawing, answer))
        if self._responding is None or self._responding.done():
            self._responding = asyncio.create_task(self._respond_waiting())
        return (await answer).model_copy(update={"dropped": dropped})

    async def _respond_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                found = await self.run(self.engine.responses, [drawing for drawing, _ in batch])
            except Exception as error:  # all requests of the batch fail with this error
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), response in zip(batch, found, strict=True):
                if not answer.done():  # it is done if its client has disconnected
                    answer.set_result(response)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs the function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def once(self, function: Callable[[], Result]) -> Result:
        """`function()`, computed once for all requests. A waiting request occupies no thread."""
        # A client that disconnects must not cancel a result for which others wait.
        return await asyncio.shield(asyncio.wrap_future(self.begin(function)))

    def begin(self, function: Callable[[], Result]) -> Future[Result]:
        """Starts the function, unless it is running or has succeeded already, and returns its future."""
        found = self._begun.get(function)
        if found is None or (found.done() and found.exception() is not None):
            found = self._begun[function] = self._threads.submit(function)
        return found
