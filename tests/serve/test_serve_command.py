"""The command `serve` up to the moment at which Ray or the server starts, and what it says."""

import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.serve import __main__ as serve
from npdraw_dist.serve import deploy
from npdraw_dist.training import launch
from tests.helpers.studio_models import GREY, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("run"), GREY)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of each `deploy`; nothing starts, and Ctrl-C comes at once."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(launch, "start_ray", lambda scale, object_store_mb: None)
    monkeypatch.setattr(deploy, "deploy", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: True)
    return calls


def noting(calls: list[tuple[Any, ...]]) -> Callable[..., Callable[[], None]]:
    """Stands for what starts a server: it notes its arguments, and returns what would end it."""

    def start(*arguments: Any) -> Callable[[], None]:
        calls.append(arguments)
        return lambda: None

    return start


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_says_where_the_page_is(
    host: str,
    model: Path,
    started: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(model.parent)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--model", "model", "--port", str(port), "--host", host, "--replicas", "2", "--use_gpu", "false"]
    serve.main(flags)
    rate = serve.STRANGERS_RATE if host == "0.0.0.0" else None
    given = serve.Serve(model="model", host=host, port=port, replicas=2, use_gpu=False, rate=rate)
    assert started == [(str(model), given)]  # workers have another working directory
    said = capsys.readouterr().out
    assert f"http://{host}:{port}\n" in said
    assert ("no login" in said) == (host == "0.0.0.0")


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        ([], {}, (None, None)),
        (["--token", "secret", "--rate", "5"], {}, ("secret", 5)),
        (["--host", "0.0.0.0"], {"NPDRAW_TOKEN": "other"}, ("other", serve.STRANGERS_RATE)),
        (["--host", "0.0.0.0", "--token", "secret"], {"NPDRAW_TOKEN": "other"}, ("secret", 50)),
    ],
)
def test_one_replica_is_served_in_this_process(
    flags: list[str],
    variables: dict[str, str],
    expected: tuple[Any, ...],
    model: Path,
    started: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local: list[tuple[Any, ...]] = []
    monkeypatch.setattr(serve, "_here", noting(local))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    serve.main(["--model", str(model), "--port", port, *flags])
    ((folder, _, options),) = local
    assert (folder, options.token, options.rate) == (str(model), *expected)
    assert started == []
    said = capsys.readouterr().out
    assert ("#token=TOKEN" in said) == (expected[0] is not None)
    assert "secret" not in said
    assert "no login" not in said


def test_a_cluster_gets_one_replica_too(
    model: Path, started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_on_ray", noting(started))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    serve.main(["--model", str(model), "--port", "8765"])
    assert len(started) == 1
