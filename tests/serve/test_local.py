"""The studio in one process, without Ray: what its requests share, and that it starts and stops."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from npdraw_dist.serve.engine import Engine, open_engine
from npdraw_dist.serve.replica import THREADS, Replica, Result
from npdraw_dist.serve.schemas import ExamplesResponse
from tests.helpers.serving import free_port, serving


@pytest.fixture
def replica(grey_model: Path) -> Replica:
    return Replica(open_engine(str(grey_model)))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs it in a thread of its own: the browser's tests may have left a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def test_it_is_computed_once_and_who_waits_takes_no_thread(replica: Replica) -> None:
    calls, go_on = [], threading.Event()

    def slow() -> int:
        calls.append(1)
        assert go_on.wait(60)
        return 5

    async def clients() -> list[int]:
        waiting = [asyncio.create_task(replica.once(slow)) for _ in range(THREADS + 2)]
        assert await asyncio.wait_for(replica.run(lambda: 7), 30) == 7
        waiting[0].cancel()  # the first client goes away
        await asyncio.wait(waiting[:1])
        go_on.set()
        return [*await asyncio.gather(*waiting[1:]), await replica.once(slow)]

    assert run(clients()) == [5] * (THREADS + 2)
    assert len(calls) == 1


def test_a_client_that_goes_away_cancels_it_for_no_other(replica: Replica) -> None:
    go_on = threading.Event()

    def five() -> int:
        return 5

    async def clients() -> int:
        busy = [asyncio.create_task(replica.run(go_on.wait, 60)) for _ in range(THREADS)]
        waiting = [asyncio.create_task(replica.once(five)) for _ in range(2)]
        await asyncio.sleep(0)  # all have begun; the computation itself has no thread yet
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        go_on.set()
        await asyncio.gather(*busy)
        return await waiting[1]

    assert run(clients()) == 5


def test_what_failed_is_tried_again(replica: Replica) -> None:
    answers = iter([0, 1])

    def second_time() -> float:
        return 1 / next(answers)

    async def ask() -> float:
        with pytest.raises(ZeroDivisionError):
            await replica.once(second_time)
        return await replica.once(second_time)

    assert run(ask()) == 1


def test_many_clients_get_their_own_answers_until_it_stops(grey_model: Path) -> None:
    with (
        serving(grey_model, "secret") as address,
        httpx.Client(base_url=address, headers={"Authorization": "Bearer secret"}, timeout=60) as client,
    ):
        drawings = [client.post("/v1/sample", json={"seed": seed}).json() for seed in range(6)]

        def again(number: int) -> bool:
            expected = drawings[number % 6]
            return bool(client.post("/v1/decode", json={"z": expected["z"]}).json()["z"] == expected["z"])

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(again, range(48)))
        counted = client.get("/metrics").text
    assert 'npdraw_requests_total{method="POST",route="/v1/decode",status="200"} 48.0' in counted
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_clients_that_wait_for_the_examples_hold_up_no_other(
    grey_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took a thread of the two, so the first page after a start showed nothing until they were there."""
    found = threading.Event()

    def examples(engine: Engine) -> ExamplesResponse:
        assert found.wait(60)
        return ExamplesResponse(examples=[])

    monkeypatch.setattr(Engine, "examples", examples)
    with (
        serving(grey_model) as address,
        httpx.Client(base_url=f"{address}/v1", timeout=30) as client,
        ThreadPoolExecutor() as pool,
    ):
        waiting = [pool.submit(client.get, "examples") for _ in range(3)]
        try:
            assert client.post("sample", json={"seed": 0}).status_code == 200
            assert client.get("bank").status_code == 200
            assert not any(answer.done() for answer in waiting)
        finally:
            found.set()
        assert [answer.result().json() for answer in waiting] == 3 * [{"examples": []}]


START = """
import sys
sys.modules["ray"] = None  # so that its import fails
from npdraw_dist.serve.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_one_replica_needs_no_ray_and_ends_on_a_signal(grey_model: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", START, "--model", str(grey_model), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["NPDRAW_TOKEN"] = "secret"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said, process.communicate()[1][-2000:]
        assert said == f"the studio: http://127.0.0.1:{port}/#token=TOKEN\n"
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").json()["status"] == "ok"
        assert httpx.get(f"http://127.0.0.1:{port}/v1/model").status_code == 401
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (0, "")
