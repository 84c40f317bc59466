"""The load on the studio's API: it counts what a server does wrong, and every action is answered."""

import base64
import io
import itertools
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npdraw_dist.bench import studio
from npdraw_dist.bench.studio import Request, Response
from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve import Serve
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.local import serve_here

# What becomes of each ten decodings.
TURNS = ("good", "refused", "good", "failed", "wrong", "good", "lost", "good", "good", "good")
STATUS = {"refused": 503, "failed": 500, "lost": 0}
TINY: dict[str, Any] = {
    "bank": {"size": 5},
    "prior": {"width": 8, "depth": 1, "attention_heads": 2},
    "vae": {"encoder_width": 8, "decoder_width": 8, "decoder_depth": 0},
}


def load(monkeypatch: pytest.MonkeyPatch, order: str, **sizes: Any) -> dict[str, float]:
    """The figures of a load of these sizes."""
    for name, value in sizes.items():
        monkeypatch.setattr(studio, name, value)
    experiment = Experiment.model_validate({**TINY, "parse": {"order": order}})
    return studio.run(Workload(experiment, np.zeros((1, 1, 28, 28), np.uint8), quick=True))


def test_what_is_refused_failed_lost_and_wrong_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = itertools.cycle(TURNS)

    def client(port: int, requests: Sequence[Request], number: int, count: int) -> list[Response]:
        found = []
        for request in (requests[(number + turn) % len(requests)] for turn in range(count)):
            turn, content = "good", b"{}"
            if request.image is not None:
                turn, picture = next(turns), io.BytesIO()
                Image.fromarray(255 - request.image if turn == "wrong" else request.image).save(
                    picture, "PNG"
                )
                content = json.dumps({"image": base64.b64encode(picture.getvalue()).decode()}).encode()
            found.append(Response(request, 0.001, STATUS.get(turn, 200), content))
        return found

    monkeypatch.setattr(studio, "_client", client)
    monkeypatch.setattr(studio.commands, "serving", lambda *flags: nullcontext())
    # Ten decodings alone, the first of which is not counted, and ten of the mixed clients.
    sizes = {"REPEATS": 9, "MIXED_CLIENTS": 5, "QUICK_ROUNDS": 2, "QUICK_REQUESTS": 40}
    figures = load(monkeypatch, "aligned", CLIENTS=(1, 4), **sizes)
    counts = {name: figures[f"serve_{name}"] for name in ("refused", "failed", "lost", "wrong")}
    assert counts == {"refused": 10, "failed": 10, "lost": 10, "wrong": 10}
    assert figures["serve_requests_per_s_of_4"] > 0
    assert figures["serve_mixed_requests_per_s_of_5"] > 0
    assert figures["serve_gif_ms"] == pytest.approx(1)


def test_a_request_without_an_answer_is_lost_and_the_next_one_connects_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for reply in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        found = studio._client(server.getsockname()[1], [Request("/v1/next")], 0, 2)
        thread.join(60)
    assert [(response.status, response.content) for response in found] == [(0, b""), (200, b"{}")]


def test_the_server_refuses_no_action(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def serving(*flags: str) -> Iterator[None]:
        _, folder, _, host, _, port = flags
        stop = serve_here(Engine(load_npdraw(folder)), Serve(host=host, port=int(port)))
        yield
        stop()

    monkeypatch.setattr(studio.commands, "serving", serving)
    sizes = {"REPEATS": 1, "MIXED_CLIENTS": 2, "QUICK_ROUNDS": 1, "QUICK_REQUESTS": 4}
    figures = load(monkeypatch, "path", CLIENTS=(1,), **sizes)
    assert {figures[f"serve_{name}"] for name in ("refused", "failed", "lost", "wrong")} == {0}
