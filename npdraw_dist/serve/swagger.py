"""The page on which requests are tried: Swagger UI from files of this package (assets/, with its notice)."""

import base64
import gzip
import hashlib
from functools import cache
from html import escape
from importlib import resources

from fastapi.responses import Response

from npdraw_dist.serve.guard import ASSETS
from npdraw_dist.serve.pages import Page

FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "swagger-ui.LICENSE.txt": "text/plain",
    "swagger-ui.NOTICE.txt": "text/plain",
}

# The token is that of the page's address, #token=..., as for the editor.
SCRIPT = """
const token = new URLSearchParams(location.hash.slice(1)).get("token");
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#ui",
  deepLinking: false,
  validatorUrl: null,
  requestInterceptor: (request) => {
    if (token) request.headers.Authorization = `Bearer ${token}`;
    return request;
  },
});
"""


def try_page(title: str) -> Page:
    """The page and its policy. Swagger UI sets styles by script, and has its icons in data: addresses."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    html = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}: API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="{ASSETS}swagger-ui.css">'
        '<p><a href="/">The editor</a> · <a href="/reference">The same without script</a> · '
        f'<a href="{ASSETS}swagger-ui.NOTICE.txt">Swagger UI</a></p>'
        f'<div id="ui"></div><script src="{ASSETS}swagger-ui-bundle.js"></script>'
        f"<script>{SCRIPT}</script></html>"
    )
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Page(html, policy)


@cache
def _content(name: str) -> tuple[bytes, bool]:
    """A file of FILES, and whether it is compressed."""
    folder = resources.files("npdraw_dist.serve") / "assets"
    packed = folder / f"{name}.gz"
    return (packed.read_bytes(), True) if packed.is_file() else ((folder / name).read_bytes(), False)


def asset(name: str, gzipped: bool) -> Response:
    """A file of FILES, compressed if the browser takes that."""
    content, packed = _content(name)
    headers = {"Cache-Control": "public, max-age=86400", "Vary": "Accept-Encoding"}
    if packed and gzipped:
        headers["Content-Encoding"] = "gzip"
    elif packed:
        content = gzip.decompress(content)
    return Response(content, media_type=FILES[name], headers=headers)
