"""The command `serve` up to the moment at which Ray or the server starts, and what it says."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.serve import STRANGERS_RATE, deploy
from npdraw_dist.serve import __main__ as serve
from npdraw_dist.training import launch
from tests.helpers.serving import free_port

Started = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What is started `here` and `on_ray`, by arguments; nothing is, and Ctrl-C comes at once."""
    calls: Started = {"here": [], "on_ray": []}

    def noting(where: str) -> Callable[..., Callable[[], None]]:
        def start(*arguments: Any) -> Callable[[], None]:
            calls[where].append(arguments)
            return lambda: None

        return start

    monkeypatch.setattr(launch, "start_ray", lambda scale, object_store_mb: None)
    monkeypatch.setattr(deploy, "deploy", noting("on_ray"))
    monkeypatch.setattr(deploy, "stop", lambda: None)
    monkeypatch.setattr(serve, "_here", noting("here"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


@pytest.mark.parametrize(
    ("flags", "variables", "where", "token", "rate"),
    [
        ("", {}, "here", None, None),
        ("--token secret --rate 5", {}, "here", "secret", 5),
        ("--token secret", {"NPDRAW_TOKEN": "other"}, "here", "secret", None),
        ("--host 0.0.0.0", {"NPDRAW_TOKEN": "secret"}, "here", "secret", STRANGERS_RATE),
        ("--host 0.0.0.0", {}, "here", None, STRANGERS_RATE),
        ("--replicas 2 --use_gpu false", {}, "on_ray", None, None),
        ("", {"RAY_ADDRESS": "127.0.0.1:6379"}, "on_ray", None, None),  # a cluster gets one replica too
    ],
)
def test_what_is_served_where_and_what_it_says(
    flags: str,
    variables: dict[str, str],
    where: str,
    token: str | None,
    rate: float | None,
    grey_model: Path,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(grey_model.parent)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    serve.main(["--model", "model", "--port", str(port), *flags.split()])
    (arguments,) = started.pop(where)
    assert list(started.values()) == [[]]
    folder, options = arguments[0], arguments[-1]
    assert folder == (str(grey_model) if where == "on_ray" else "model")  # workers have another directory
    assert (options.port, options.token, options.rate) == (port, token, rate)
    said, open_to_all = capsys.readouterr().out, "0.0.0.0" in flags
    assert f"http://{'0.0.0.0' if open_to_all else '127.0.0.1'}:{port}" in said
    assert ("#token=TOKEN" in said) == (token is not None)
    assert "secret" not in said
    assert ("no login" in said) == (open_to_all and token is None)
