"""The two pages: the editor, one file of this package, and the reference of the API, out of its schema.

Neither loads anything from elsewhere; their policies allow their own script and style, by digest.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Page:
    """HTML, and its Content-Security-Policy."""

    html: str
    policy: str


@cache
def editor_page() -> Page:
    return _page((resources.files("npdraw_dist.serve") / "page.html").read_text("utf-8"))


def _page(html: str) -> Page:
    scripts = _digests("script", html) or "'none'"
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {_digests('style', html)}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Page(html, policy)


def _digests(tag: str, html: str) -> str:
    """The sources of a policy that allow the blocks <tag>...</tag> of a page."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8884; padding: .5rem 0 1rem; }
h2 { font: 600 1rem ui-monospace, monospace; margin: .5rem 0; }
h3 { font: 600 .95rem ui-monospace, monospace; margin: 1.5rem 0 0; }
p, ul { margin: .25rem 0; }
small { color: #888; }
h2 b { display: inline-block; min-width: 3.5rem; }
code { font: .875rem/1.5 ui-monospace, monospace; }
summary { cursor: pointer; }
"""


def reference_page(schema: dict[str, Any]) -> Page:
    """The OpenAPI schema as a page that reads without a script."""
    operations = [
        _operation(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    models = [_described(name, model) for name, model in sorted(schema["components"]["schemas"].items())]
    info = schema["info"]
    return _page(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}: API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{escape(info['title'])}: API</h1><p>{escape(info['description'])}</p>"
        '<p><a href="/">The editor</a> · <a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(operations)}<section><h2>Models</h2>{''.join(models)}</section></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    """A request: what it takes, and what it answers."""
    takes = [
        f"<li><code>{escape(p['name'])}</code> in the {p['in']}: {_type(p['schema'])} {_about(p['schema'])}"
        for p in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        takes.append(f"<li>body, <code>{kind}</code>: {_type(content['schema'])}")
    gives = [
        f"<li>{status}: {escape(answer['description'])} "
        + ", ".join(
            f"<code>{kind}</code> {_type(content.get('schema', {}))}"
            for kind, content in answer.get("content", {}).items()
        )
        for status, answer in sorted(operation["responses"].items())
    ]
    summary = escape(operation.get("summary", ""))
    return (
        f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2><p>{summary}</p>"
        f"<ul>{''.join(takes)}</ul><details><summary>Answers</summary><ul>{''.join(gives)}</ul></details></section>"
    )


def _described(name: str, model: dict[str, Any]) -> str:
    """A model and its fields; a question mark follows those that may be left out."""
    needed = set(model.get("required", ()))
    fields = [
        f"<li><code>{escape(key)}</code>{'' if key in needed else '?'}: {_type(field)} {_about(field)}"
        for key, field in model.get("properties", {}).items()
    ]
    about = escape(model.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{about}</p><ul>{"".join(fields)}</ul>'


def _type(schema: dict[str, Any]) -> str:
    """What a value is, in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(map(_type, schema[key]))
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    limits = (
        ("from", "minimum"),
        ("above", "exclusiveMinimum"),
        ("to", "maximum"),
        ("below", "exclusiveMaximum"),
    )
    bounds = "".join(f" {word} {schema[key]:g}" for word, key in limits if key in schema)
    return escape(schema.get("type", "")) + bounds


def _about(schema: dict[str, Any]) -> str:
    return f"<small>{escape(schema['description'])}</small>" if "description" in schema else ""
