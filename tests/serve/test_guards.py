"""The server refuses wrong tokens, sizes, hosts, paths and requests. Also its headers and its page."""

import asyncio
import base64
import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from npdraw_dist.serve import Serve
from npdraw_dist.serve.api import build_app
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.middleware import MAX_JSON_BYTES
from npdraw_dist.serve.uploads import MAX_BYTES
from npdraw_dist.system.errors import StorageFailed
from tests.helpers.serving import Json, Served
from tests.helpers.studio_models import png_of

PAPER = "https://arxiv.org/abs/2106.13435"
JSON = {"Content-Type": "application/json"}


def test_pages_are_open_and_the_model_wants_the_token(grey: Served) -> None:
    client = grey.client_of(token="secret")
    for path in ("/", "/healthz"):
        assert client.get(path).status_code == 200
    for path in ("/", "/healthz"):  # as monitors ask
        assert client.head(path).status_code == 200
    for path in ("/v1/model", "/openapi.json", "/nowhere"):
        refused = client.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert "secret" not in refused.text
    for given in ("Bearer wrong", "secret", "Basic secret", "Bearer", "Bearer sécret", "Bearer secrets"):
        answer = client.get("/v1/model", headers=[(b"Authorization", given.encode())])
        assert answer.status_code == 401
    assert client.get("/v1/model", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_more_requests_than_may_wait_are_refused(grey: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        begun.set()
        assert end.wait(60)
        raise IndexError("no such image")

    monkeypatch.setattr(grey.replica.engine, "test_image", slow)
    client = grey.client_of(at_once=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.get, "/v1/test/0")
        assert begun.wait(60)
        assert client.get("/healthz").status_code == 503
        end.set()
        assert first.result().status_code == 404
    assert client.get("/healthz").status_code == 200


def test_a_body_that_does_not_come_holds_no_place(grey: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.serve.middleware.BODY_S", 0.1)
    app, sent = build_app(lambda: grey.replica, Serve(), at_once=1), list[Any]()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/sample", "query_string": b"", "headers": headers}
    came = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> Any:
        if (message := next(came, None)) is not None:
            return message
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    with ThreadPoolExecutor(1) as thread:  # a browser's test may have left a loop in this one
        thread.submit(asyncio.run, app(scope, receive, send)).result()
    assert sent[0]["status"] == 408
    assert b"more than 0.1 s" in sent[1]["body"]


def blank(**changes: Any) -> Json:
    return {"whether": [True] * 36, "where": list(range(36)), "what": [0] * 36} | changes


BAD = blank(what=[20] * 36)  # the bank has 0 to 19


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("decode", {"z": BAD}, "what is 20"),
        ("decode", {"z": blank(whether=[True])}, "the same length"),
        ("decode", {"z": blank(), "file": "/etc/passwd"}, "file"),
        ("decode", {"z": blank(u="AAAA")}, "no u"),
        ("compose", {"a": blank(), "b": blank(), "places": [36]}, "place 36"),
        ("edit", {"z": blank(), "edit": {"kind": "put", "place": 0, "part": 20}}, "part 20"),
        ("edit", {"z": blank(), "edit": {"kind": "swap", "first": 36, "second": 0}}, "place 36"),
        ("complete", {"z": blank(), "keep": [36]}, "place 36"),
        ("next", {"z": blank(), "place": 36}, "place 36"),
        ("parse", {"image": "no base64!"}, "image is not base64"),
        ("parse", {"image": base64.b64encode(b"no picture").decode()}, "none of PNG"),
        ("sample", {"seed": -1}, "seed"),
    ],
)
def test_what_is_refused(path: str, body: Json, says: str, grey: Served) -> None:
    assert says in grey.post(path, 422, **body)["detail"]


def test_a_body_or_query_that_is_no_request(grey: Served) -> None:
    for content in (b"", b"{", b'{"seed": NaN}', b"[" * 100_000, b"\xff"):
        answer = grey.client.post("/v1/sample", content=content, headers=JSON)
        assert answer.status_code in (400, 422)
        assert isinstance(answer.json()["detail"], str)
    for query in ("n=33", "temperature=nan"):
        assert grey.client.get(f"/v1/gallery?{query}").status_code == 422


def test_a_file_that_is_no_picture(grey: Served) -> None:
    small = png_of(np.zeros((9, 9), np.uint8))
    for query, content, status in (
        ("", b"no picture", 422),
        ("", b"", 422),
        ("", b"0" * (MAX_BYTES + 1), 422),
        ("", b"0" * (MAX_BYTES + (1 << 17)), 413),
        ("?crop=yes", small, 422),
        ("?invert=true", small, 422),
    ):
        answer = grey.client.post(f"/v1/encode{query}", files={"file": ("../../etc/passwd", content)})
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["detail"], str)


def test_a_body_of_unknown_length_is_cut_off(grey: Served) -> None:
    pieces = repeat(b" " * (1 << 16), 100 * MAX_JSON_BYTES >> 16)
    assert grey.client.post("/v1/decode", content=pieces, headers=JSON).status_code == 413


def test_a_storage_that_fails_is_no_mistake(grey: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = grey.client_of(raising=False)
    for error, status in ((StorageFailed("gone"), 500), (ValueError("place 99"), 422)):
        monkeypatch.setattr(Engine, "frames", Mock(side_effect=error))
        assert client.post("/v1/steps", json={"z": blank()}).status_code == status


def test_headers_of_every_answer(grey: Served) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    paths = ("/", "/openapi.json", "/healthz", "/nowhere", "/v1/test/99")
    answers = [grey.client.get(path, headers=origin) for path in paths]
    answers += [grey.client.post("/v1/decode", content=content) for content in (b"{}", b" " * (2 << 20))]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 422, 413]
    answers.append(grey.client.options("/v1/sample", headers=origin))
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        # No page of another origin reads an answer.
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_page_loads_nothing_from_elsewhere_and_only_its_own_script(grey: Served) -> None:
    answer = grey.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    text = answer.text.replace(f'<a href="{PAPER}"', "<a")  # nothing is loaded before a click
    named = set(re.findall(r'(?:src|href)="([^"]*)"', text))
    elsewhere = {name for name in named if not name.startswith("#")}
    assert elsewhere <= {"data:,", "/", "/openapi.json"}
    assert re.findall(r"(?:https?:)?//[a-z]+\.", text) == []
    for tag in ("script", "style"):
        for block in re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.S):
            digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_no_other_host_and_no_path_to_the_file_system_is_answered(grey: Served) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "169.254.169.254"):
        assert grey.client.get("/healthz", headers={"Host": host}).status_code == 400
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert grey.client.get("/healthz", headers={"Host": host}).status_code == 200
    up = ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/test/..%2f..%2fetc", "/page.html")
    for path in up:
        assert grey.client.get(path).status_code in (404, 422)
