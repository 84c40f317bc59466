"""Token, limits of rate and number, and the counts of the requests. No model, no Ray."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from npdraw_dist.serve import Serve
from npdraw_dist.serve.middleware import ADDRESSES, BURST_S, Guard, Measured, Rate


async def fine(_: Any) -> PlainTextResponse:
    return PlainTextResponse("fine")


def client(options: Serve, registry: CollectorRegistry | None = None) -> TestClient:
    paths = (
        "/",
        "/healthz",
        "/docs",
        "/model",
        "/metrics",
        "/openapi.json",
        "/test/{index}",
    )
    app = Starlette(routes=[Route(path, fine, methods=["GET", "POST"]) for path in paths])
    app.add_middleware(Guard, options=options)
    app.add_middleware(Measured, registry=registry or CollectorRegistry())
    return TestClient(app)


def test_pages_are_open_and_the_model_wants_the_token() -> None:
    served = client(Serve(token="secret"))
    for path in ("/", "/healthz", "/docs"):
        assert served.get(path).status_code == 200
    for path in ("/model", "/metrics", "/openapi.json", "/nowhere"):
        refused = served.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert "secret" not in refused.text
    for given in ("Bearer wrong", "secret", "Basic secret", "Bearer", "Bearer sécret", "Bearer secrets"):
        answer = served.get("/model", headers=[(b"Authorization", given.encode())])
        assert answer.status_code == 401
    assert served.get("/model", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_no_page_of_another_origin_reads_an_answer() -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        client(Serve()).options("/model", headers=origin),
        client(Serve()).get("/", headers=origin),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_address_may_make_so_many_requests_a_second() -> None:
    now = [0.0]
    rate = Rate(2.0, lambda: now[0])
    assert [rate.wait_s("a") for _ in range(2 * BURST_S)] == [0.0] * 2 * BURST_S
    assert rate.wait_s("a") == pytest.approx(0.5)
    assert rate.wait_s("b") == 0  # another address
    now[0] = 0.5
    assert (rate.wait_s("a"), rate.wait_s("a") > 0) == (0, True)
    for number in range(2 * ADDRESSES):
        rate.wait_s(str(number))
    assert len(rate._buckets) == ADDRESSES


def test_too_many_requests_are_told_when_to_come_again() -> None:
    served = client(Serve(rate=0.4))
    answers = [served.get("/healthz") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert "0.4 requests a second" in answers[-1].json()["detail"]


def test_more_requests_at_once_than_may_wait_are_refused() -> None:
    async def both() -> list[int]:
        begun, end = asyncio.Event(), asyncio.Event()
        statuses: list[int] = []

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await end.wait()
            await PlainTextResponse("done")(scope, receive, send)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        guard = Guard(slow, Serve(), at_once=1)
        scope = {"type": "http", "path": "/", "method": "GET", "headers": [], "client": ("1", 1)}
        first = asyncio.create_task(guard(scope, receive, send))
        await begun.wait()
        await guard(scope, receive, send)
        end.set()
        await first
        await guard(scope, receive, send)
        return statuses

    with ThreadPoolExecutor(1) as pool:  # Playwright's browser of other tests has a loop in this thread
        assert pool.submit(lambda: asyncio.run(both())).result() == [503, 200, 200]


def test_every_request_is_counted_by_route_and_status() -> None:
    registry = CollectorRegistry()
    served = client(Serve(token="secret"), registry)
    good = {"Authorization": "Bearer secret"}
    for number in (1, 2):
        served.get(f"/test/{number}", headers=good)
    served.get("/model")
    served.get("/nowhere", headers=good)
    text = generate_latest(registry).decode()
    assert 'npdraw_requests_total{method="GET",route="/test/{index}",status="200"} 2.0' in text
    assert 'route="refused before routing",status="401"} 1.0' in text
    assert 'route="refused before routing",status="404"} 1.0' in text
    assert 'npdraw_request_seconds_count{route="/test/{index}"} 2.0' in text
    assert "nowhere" not in text
