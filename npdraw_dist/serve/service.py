"""What the routes need of the process that serves them: a replica, and errors of a request as answers."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, HTTPException, Request

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.serve import schemas
from npdraw_dist.serve.engine import Engine

Result = TypeVar("Result")


class Service(Protocol):
    """What a replica offers to the routes."""

    engine: Engine

    async def decode(self, z: PartSequence) -> schemas.DrawingResponse:
        """`Engine.decode` of one drawing (1, T), in one batch with those of other requests."""

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)` in a thread beside the event loop."""

    async def once(self, function: Callable[[], Result]) -> Result:
        """`function()`, computed once for all requests; one that waits for it takes no thread."""


REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"model": schemas.ErrorResponse, "description": "The token is missing or wrong"},
    413: {"model": schemas.ErrorResponse, "description": "Too large"},
    422: {"model": schemas.ErrorResponse, "description": "Refused, with the reason"},
    429: {"model": schemas.ErrorResponse, "description": "Too many requests from this address"},
    503: {"content": {"text/plain": {}}, "description": "Too many requests wait"},  # also by Ray Serve itself
}


async def _service(request: Request) -> Service:
    found: Service = request.app.state.service()
    return found


Replica = Annotated[Service, Depends(_service)]


async def checked(replica: Service, function: Callable[..., Result], *arguments: Any) -> Result:
    """`replica.run`, with a ValueError answered by 422."""
    try:
        return await replica.run(function, *arguments)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
