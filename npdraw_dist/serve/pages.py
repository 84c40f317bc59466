"""The two pages: the studio (page.html with the files of page/) and the reference, from the OpenAPI schema.

Neither loads anything from elsewhere. Their policies allow their own script and style by digest.
"""

import base64
import hashlib
import json
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import yaml
from fastapi.responses import HTMLResponse


def studio_page() -> HTMLResponse:
    return _page(_studio())


@cache
def _studio() -> str:
    """page.html with the style sheet and the scripts that it names, so that one request loads it all."""
    folder = resources.files("npdraw_dist.serve")

    def inline(found: re.Match[str]) -> str:
        tag, name = ("style", found[1]) if found[1] else ("script", found[2])
        return f"<{tag}>{(folder / name).read_text('utf-8')}</{tag}>"

    named = r'<link rel="stylesheet" href="(.+?)">|<script src="(.+?)"></script>'
    return re.sub(named, inline, (folder / "page.html").read_text("utf-8"))


def _page(html: str) -> HTMLResponse:
    """The page with a policy that allows its own blocks of script and style."""

    def digests(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        made = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in made) or "'none'"

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8884; padding: .5rem 0 1rem; }
h2, h3 { font: 600 1rem ui-monospace, monospace; margin: .5rem 0; }
h2 b { display: inline-block; min-width: 3.5rem; }
p { margin: .25rem 0; }
pre { font: .875rem/1.5 ui-monospace, monospace; margin: .25rem 0; white-space: pre-wrap; }
summary { cursor: pointer; }
"""


def reference_page(schema: dict[str, Any]) -> HTMLResponse:
    """The OpenAPI schema as a page that needs no script: requests, responses and models in YAML."""
    operations = "".join(
        f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2><p>{escape(operation['summary'])}</p>"
        f"{_yaml({key: operation[key] for key in ('parameters', 'requestBody') if key in operation})}"
        f"<details><summary>Responses</summary>{_yaml(operation['responses'])}</details></section>"
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    models = "".join(
        f'<h3 id="{name}">{name}</h3>{_yaml(model)}'
        for name, model in sorted(schema["components"]["schemas"].items())
    )
    title = f"{schema['info']['title']}: API"
    return _page(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{title}</h1><p>{escape(schema['info']['description'])}</p>"
        '<p><a href="/">The studio</a> · <a href="/openapi.json">openapi.json</a></p>'
        f"{operations}<section><h2>Models</h2>{models}</section></html>"
    )


def _yaml(value: dict[str, Any]) -> str:
    """YAML without the titles that repeat the names; references are links to the models."""
    plain = json.loads(json.dumps(value))  # no shared objects, which YAML would write as anchors
    text = escape(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), quote=False) if value else ""
    text = re.sub(r"^ *title: \S.*\n", "", text, flags=re.M)
    linked = re.sub(r"[$]ref: '#/components/schemas/(\w+)'", r'<a href="#\1">\1</a>', text)
    return linked and f"<pre>{linked}</pre>"
