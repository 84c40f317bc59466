"""The studio in one process, without Ray, and the command `serve`."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from npdraw_dist.distributed import start
from npdraw_dist.serve import __main__ as serve
from npdraw_dist.serve import deploy
from npdraw_dist.serve.engine import Engine, open_engine
from npdraw_dist.serve.replica import THREADS, Replica
from npdraw_dist.serve.schemas import ExamplesResponse
from tests.helpers.serving import Served, free_port, serving


def test_a_client_that_goes_away_cancels_it_for_no_other_and_what_failed_is_tried_again(grey: Served) -> None:
    replica, go_on, answers = Replica(open_engine(str(grey.folder))), threading.Event(), iter([0, 1])

    def five() -> int:
        return 5

    def second_time() -> float:
        return 1 / next(answers)

    async def clients() -> int:
        busy = [asyncio.create_task(replica.run(go_on.wait, 60)) for _ in range(THREADS)]
        waiting = [asyncio.create_task(replica.once(five)) for _ in range(2)]
        await asyncio.sleep(0)  # all have begun; the computation itself has no thread yet
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        go_on.set()
        await asyncio.gather(*busy)
        with pytest.raises(ZeroDivisionError):
            await replica.once(second_time)
        assert await replica.once(second_time) == 1
        return await waiting[1]

    with ThreadPoolExecutor(1) as thread:  # of its own: the browser's tests may have left a loop in this one
        assert thread.submit(asyncio.run, clients()).result() == 5


def test_many_clients_get_their_own_answers_until_it_stops(grey: Served) -> None:
    with (
        serving(grey.folder, "secret") as address,
        httpx.Client(base_url=address, headers={"Authorization": "Bearer secret"}, timeout=60) as client,
    ):
        drawings = [client.post("/v1/sample", json={"seed": seed}).json() for seed in range(6)]

        def again(number: int) -> bool:
            expected = drawings[number % 6]
            return bool(client.post("/v1/decode", json={"z": expected["z"]}).json()["z"] == expected["z"])

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(again, range(48)))
        assert httpx.get(f"{address}/v1/model").status_code == 401
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_clients_that_wait_hold_up_no_other(grey: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """When each took one of the two threads, the first page after a start showed nothing for long."""
    found, calls = threading.Event(), []

    def examples(engine: Engine) -> ExamplesResponse:
        calls.append(engine)
        assert found.wait(60)
        return ExamplesResponse(examples=[])

    monkeypatch.setattr(Engine, "examples", examples)
    with (
        serving(grey.folder) as address,
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
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("flags", "variables", "token"),
    [
        ("", {}, None),
        ("--token secret", {}, "secret"),
        ("--token secret", {"NPDRAW_TOKEN": "other"}, "secret"),
        ("--host 0.0.0.0", {"NPDRAW_TOKEN": "secret"}, "secret"),
        ("--host 0.0.0.0", {}, None),
        ("--replicas 2 --use_gpu false", {}, None),
        ("", {"RAY_ADDRESS": "127.0.0.1:6379"}, None),  # a cluster gets one replica too
        ("--host ::1", {}, None),
    ],
)
def test_what_the_command_serves_and_says(
    flags: str, variables: Any, token: Any, grey: Served, monkeypatch: Any, capsys: Any
) -> None:
    """No server is started, and Ctrl-C comes at once."""
    here, on_ray = Mock(), Mock()
    monkeypatch.setattr(serve, "_in_process", here)
    monkeypatch.setattr(deploy, "deploy", on_ray)
    monkeypatch.setattr(deploy, "stop", Mock())
    monkeypatch.setattr(start, "start_ray", Mock())
    monkeypatch.setattr(signal, "signal", Mock())
    monkeypatch.setattr(threading.Event, "wait", Mock())
    monkeypatch.chdir(grey.folder.parent)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    serve.main(["--model", "model", "--port", str(port), *flags.split()])
    far = "--replicas 2" in flags or "RAY_ADDRESS" in variables
    assert (here.call_count, on_ray.call_count) == (not far, far)
    folder, *_, options = (on_ray if far else here).call_args.args
    assert folder == (str(grey.folder) if far else "model")  # workers have another working directory
    assert (options.port, options.token) == (port, token)
    said = capsys.readouterr().out
    host = {"--host 0.0.0.0": "0.0.0.0", "--host ::1": "[::1]"}.get(flags, "127.0.0.1")
    assert f"http://{host}:{port}" in said
    assert ("#token=TOKEN" in said) == (token is not None)
    assert "secret" not in said
    assert ("no login" in said) == (host == "0.0.0.0" and token is None)


START = """
import sys
sys.modules["ray"] = None  # so that its import fails
from npdraw_dist.serve.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_one_replica_needs_no_ray_and_ends_on_a_signal(grey: Served) -> None:
    port = free_port()
    command = [sys.executable, "-c", START, "--model", str(grey.folder), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment | {"NPDRAW_TOKEN": "secret"}, **pipes)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/#token=TOKEN" in said, process.communicate()[1][-2000:]
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").json()["status"] == "ok"
        assert httpx.get(f"http://127.0.0.1:{port}/v1/model").status_code == 401
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (0, "")
