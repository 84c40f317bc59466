"""The studio in one process, without Ray: started, under several clients, in a browser, and stopped."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from npdraw_dist.serve import Serve
from npdraw_dist.serve.engine import Engine, open_engine
from npdraw_dist.serve.local import serve_here
from npdraw_dist.serve.schemas import ExamplesResponse
from tests.helpers.serving import serving
from tests.helpers.studio_models import GREY, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("served"), GREY)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    port = free_port()
    stop = serve_here(open_engine(str(model)), Serve(port=port, token="secret"))
    yield f"http://127.0.0.1:{port}"
    stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_many_clients_get_their_own_answers(address: str) -> None:
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer secret"}, timeout=60) as client:
        drawings = [client.post("/v1/sample", json={"seed": seed}).json() for seed in range(6)]

        def again(number: int) -> bool:
            expected = drawings[number % 6]
            return bool(client.post("/v1/decode", json={"z": expected["z"]}).json()["z"] == expected["z"])

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(again, range(48)))
        counted = client.get("/metrics").text
    assert 'npdraw_requests_total{method="POST",route="/v1/decode",status="200"} 48.0' in counted


def test_clients_that_wait_for_the_examples_hold_up_no_other(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took a thread of the two, so the first page after a start showed nothing until they were there."""
    found = threading.Event()

    def examples(engine: Engine) -> ExamplesResponse:
        assert found.wait(60)
        return ExamplesResponse(examples=[])

    monkeypatch.setattr(Engine, "examples", examples)
    with (
        serving(model) as address,
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
def test_one_replica_needs_no_ray_and_ends_on_a_signal(model: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", START, "--model", str(model), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"NPDRAW_TOKEN": "secret"},
    )
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
