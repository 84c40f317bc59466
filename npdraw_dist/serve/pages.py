"""The studio's page: page.html with the files of page/ in it. It loads nothing from elsewhere.

Its policy allows its own script and style by digest.
"""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi.responses import HTMLResponse


def studio_page() -> HTMLResponse:
    html = _studio()

    def digests(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        made = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in made)

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@cache
def _studio() -> str:
    """page.html with the style sheet and the scripts that it names, so that one request loads it all."""
    folder = resources.files("npdraw_dist.serve")

    def inline(found: re.Match[str]) -> str:
        tag, name = ("style", found[1]) if found[1] else ("script", found[2])
        return f"<{tag}>{(folder / name).read_text('utf-8')}</{tag}>"

    named = r'<link rel="stylesheet" href="(.+?)">|<script src="(.+?)"></script>'
    return re.sub(named, inline, (folder / "page.html").read_text("utf-8"))
