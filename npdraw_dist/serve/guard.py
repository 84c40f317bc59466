"""ASGI middleware around every request: the limit of its body, and the security headers of its response."""

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npdraw_dist.data.uploads import MAX_BYTES

MAX_JSON_BYTES = 1 << 20
FORM_BYTES = 1 << 16  # what a form adds to the file in it
UPLOADS = ("/encode",)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLarge(HTTPException):
    """The body is over the limit. FastAPI turns other errors raised while a body is read into 400."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is over {limit:,} bytes")


class Guard:
    """Stops reading a body at its limit and answers 413. HEADERS are set unless a route set them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = MAX_BYTES + FORM_BYTES if scope["path"] in UPLOADS else MAX_JSON_BYTES
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise TooLarge(limit)
            return message

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            refusal = TooLarge(limit)
            response = JSONResponse({"detail": refusal.detail}, refusal.status_code)
            return await response(scope, receive, send_guarded)
        return await self._app(scope, receive_counted, send_guarded)
