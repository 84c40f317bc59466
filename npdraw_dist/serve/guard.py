"""Around every request: how much it may send, and the headers of every answer."""

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

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
    """The body goes beyond the limit. FastAPI passes on this kind, and would answer others by 400."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is over {limit:,} bytes")


class Guard:
    """ASGI middleware: a body beyond the limit is not read on, and is answered by 413."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = MAX_BYTES + FORM_BYTES if scope["path"] in UPLOADS else MAX_JSON_BYTES
        seen = 0

        async def receive_counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise TooLarge(limit)
            return message

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                names = {name.lower() for name, _ in headers}
                headers += [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in names
                ]
                message = {**message, "headers": headers}
            await send(message)

        if _announced(scope) > limit:
            refusal = TooLarge(limit)
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code)
            return await answer(scope, receive, send_guarded)
        return await self._app(scope, receive_counted, send_guarded)


def _announced(scope: Any) -> int:
    """Content-Length; 0 where it is missing or no number."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
