"""Counts and times of the requests, in Prometheus's text format."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REFUSED = "refused before routing"  # and paths that do not exist, which would be labels without end


class Metrics:
    """The numbers of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = ("route", "method", "status")
        self._requests = Counter("npdraw_requests", "Requests answered", names, registry=self._registry)
        self._seconds = Histogram(
            "npdraw_request_seconds",
            "Seconds from a request to the end of its answer",
            ("route",),
            registry=self._registry,
            buckets=BUCKETS,
        )

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them, as /metrics shows them."""
        return generate_latest(self._registry)


VERSION = "/v1"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _route(scope: Scope) -> str:
    """The path of the route that answered, with its parameters' names. A router's own path has no prefix."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return REFUSED
    versioned = scope["path"].startswith(f"{VERSION}/") and not path.startswith(f"{VERSION}/")
    return f"{VERSION}{path}" if versioned else str(path)


class Measured:
    """ASGI middleware that counts every request in `metrics`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.count(_route(scope), method, status, time.perf_counter() - started)
