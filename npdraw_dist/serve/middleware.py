"""ASGI middleware around every request: token, limits, security headers, and counts for Prometheus."""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi import HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npdraw_dist.serve import Serve
from npdraw_dist.serve.uploads import MAX_BYTES

MAX_JSON_BYTES = 1 << 20
FORM_BYTES = 1 << 16  # what a form adds to the file in it
BODY_S = 60  # time limit of a body
UPLOADS = ("/v1/encode",)
OPEN_PATHS = ("/", "/healthz", "/docs")  # without token: they tell nothing of the model
BURST_S = 5  # so many seconds' requests an address may make at once
ADDRESSES = 4096  # that are remembered; the longest silent one is forgotten
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
UNROUTED = "refused before routing"  # and paths that do not exist, which would be labels without end

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Rate:
    """A token bucket for each address: `rate` requests a second, and BURST_S times as many at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, max(rate * BURST_S, 1.0), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, when

    def wait_s(self, address: str) -> float:
        """0.0 if the request may pass, which counts it; else the seconds until one may."""
        now = self._clock()
        left, then = self._buckets.pop(address, (self._most, now))
        left = min(left + (now - then) * self._rate, self._most)
        passes = left >= 1
        self._buckets[address] = (left - passes, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (1 - left) / self._rate


class Guard:
    """Refuses what is too frequent (429), without token (401), too much at once (503), too large or too slow.

    options: its token, and its rate, which the replicas share. at_once: requests that are worked on or
    wait; None if something before this server counts them. It stops reading a body at its limits. HEADERS are
    set unless a route set them. There is no header of CORS, so no page of another origin reads an answer.
    """

    def __init__(self, app: ASGIApp, options: Serve, at_once: int | None = None) -> None:
        self._app, self._options, self._at_once = app, options, at_once
        self._rate = None if options.rate is None else Rate(options.rate / options.replicas)
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = MAX_BYTES + FORM_BYTES if scope["path"] in UPLOADS else MAX_JSON_BYTES
        too_large, seen = f"the body is over {limit:,} bytes", 0
        latest: float | None = asyncio.get_running_loop().time() + BODY_S

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def receive_counted() -> Message:
            nonlocal seen, latest
            try:
                async with asyncio.timeout_at(latest):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body took more than {BODY_S} s") from None
            if not message.get("more_body"):
                latest = None  # what follows tells that the client has gone
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, too_large)  # FastAPI makes 400 of other errors here
            return message

        refusal = self._refusal(scope)
        announced = Headers(scope=scope).get("content-length", "")
        if refusal is None and announced.isdecimal() and int(announced) > limit:
            refusal = JSONResponse({"detail": too_large}, 413)
        if refusal is not None:
            return await refusal(scope, receive, send_guarded)
        self._ongoing += 1
        try:
            await self._app(scope, receive_counted, send_guarded)
        finally:
            self._ongoing -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        address = (scope.get("client") or ("unknown",))[0]
        known = self._has_token(scope["path"], Headers(scope=scope).get("authorization", ""))
        # Guesses have a rate of their own: those who know the token may have the same address behind a proxy.
        name = address if known else f"{address} without token"
        wait_s = 0.0 if self._rate is None else self._rate.wait_s(name)
        if wait_s:
            detail = f"more than {self._options.rate:g} requests a second from this address"
            return JSONResponse({"detail": detail}, 429, {"Retry-After": str(int(wait_s) + 1)})
        if not known:
            detail = "give the server's token: Authorization: Bearer TOKEN"
            return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
        if self._at_once is not None and self._ongoing >= self._at_once:
            return PlainTextResponse("too many requests wait; try again", 503)
        return None

    def _has_token(self, path: str, given: str) -> bool:
        token = self._options.token
        if token is None or path in OPEN_PATHS:
            return True
        scheme, _, word = given.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(word.strip().encode(), token.encode())


class Measured:
    """ASGI middleware that counts every request in `registry`, which /metrics shows."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        names = ("route", "method", "status")
        self._requests = Counter("npdraw_requests", "Requests answered", names, registry=registry)
        about = "Seconds from a request to the end of its answer"
        name, labels = "npdraw_request_seconds", ("route",)
        self._seconds = Histogram(name, about, labels, registry=registry, buckets=BUCKETS)

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
            route = str(getattr(scope.get("route"), "path", UNROUTED))  # with its parameters' names
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._requests.labels(route, method, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - started)
