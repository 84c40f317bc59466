"""ASGI middleware around every request: token, limits and security headers."""

import asyncio
import hmac

from fastapi import HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npdraw_dist.serve.uploads import MAX_BYTES

MAX_JSON_BYTES = 1 << 20
FORM_BYTES = 1 << 16  # largest number of bytes that a form adds to its file
BODY_S = 60  # time limit for receiving a body, in seconds
UPLOADS = ("/v1/encode",)
OPEN_PATHS = ("/", "/healthz")  # they reveal nothing about the model, so they need no token

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses requests without the token (401), above `at_once` (503), or with a too large or slow body.

    token: None if requests need no token. at_once: limit on requests that run or wait; None if another server
    limits them. Reading a body stops at the limits of size and time. HEADERS are set unless a route sets its
    own. No CORS header is set, so that no page of another origin can read a response.
    """

    def __init__(self, app: ASGIApp, token: str | None, at_once: int | None = None) -> None:
        self._app, self._token, self._at_once = app, token, at_once
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
                latest = None  # later messages only report that the client has disconnected
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, too_large)  # FastAPI would turn another exception into 400
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
        known = self._has_token(scope["path"], Headers(scope=scope).get("authorization", ""))
        if not known:
            detail = "give the server's token: Authorization: Bearer TOKEN"
            return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
        if self._at_once is not None and self._ongoing >= self._at_once:
            return PlainTextResponse("too many requests wait; try again", 503)
        return None

    def _has_token(self, path: str, given: str) -> bool:
        token = self._token
        if token is None or path in OPEN_PATHS:
            return True
        scheme, _, word = given.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(word.strip().encode(), token.encode())
