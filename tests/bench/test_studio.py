"""The load on the studio's API counts what a server does wrong: against one that misbehaves on purpose."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from npdraw_dist.bench import studio
from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve import Serve
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.local import serve_here
from npdraw_dist.serve.schemas import DecodeRequest

# What becomes of each ten requests.
TURNS = ("good", "refused", "good", "failed", "wrong", "good", "lost", "good", "good", "good")
TINY: dict[str, Any] = {
    "bank": {"size": 5},
    "prior": {"width": 8, "depth": 1, "attention_heads": 2},
    "vae": {"encoder_width": 8, "decoder_width": 8, "decoder_depth": 0},
}


class Handler(BaseHTTPRequestHandler):
    """Decodes as the API does, or not, by TURNS. Other actions have an empty answer."""

    protocol_version = "HTTP/1.1"
    engine: Engine
    turns: Iterator[str]
    asked: ClassVar[set[str]] = set()
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/decode":
            self.asked.add(self.path)
            return self._answer(200, b"{}")
        with self.lock:
            turn = next(self.turns)
            drawn = self.engine.drawing(DecodeRequest.model_validate_json(body).z)
            if turn == "wrong":
                drawn = self.engine.model.drawings(drawn.z.map(torch.zeros_like))
            drawing = self.engine.responses([drawn])[0].model_dump_json().encode()
        if turn == "lost":
            self.close_connection = True
            return
        self._answer({"refused": 503, "failed": 500}.get(turn, 200), drawing)

    def do_GET(self) -> None:
        self.asked.add(self.path)
        self._answer(200, b"{}")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.slow
def test_what_is_refused_failed_lost_and_wrong_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def serving(*flags: str) -> Iterator[None]:
        _, folder, _, host, _, port = flags
        model = load_npdraw(folder)
        Handler.engine, Handler.turns = Engine(model), itertools.cycle(TURNS)
        server = ThreadingHTTPServer((host, int(port)), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()
        server.server_close()

    monkeypatch.setattr(studio.commands, "serving", serving)
    monkeypatch.setattr(studio, "CLIENTS", (1, 4))
    monkeypatch.setattr(studio, "QUICK_REQUESTS", 40)
    monkeypatch.setattr(studio, "REPEATS", 9)  # 10 decodings, the first of which is not counted
    monkeypatch.setattr(studio, "MIXED_CLIENTS", 5)
    monkeypatch.setattr(studio, "QUICK_ROUNDS", 2)  # 10 decodings
    work = Workload(Experiment.model_validate(TINY), np.zeros((1, 1, 28, 28), np.uint8), quick=True)
    figures = studio.run(work)
    counts = {name: figures[f"serve_{name}"] for name in ("refused", "failed", "lost", "wrong")}
    assert counts == {"refused": 10, "failed": 10, "lost": 10, "wrong": 10}
    for clients in (1, 4):
        assert figures[f"serve_requests_per_s_of_{clients}"] > 0
        assert figures[f"serve_p50_ms_of_{clients}"] <= figures[f"serve_p95_ms_of_{clients}"]
    assert figures["serve_mixed_requests_per_s_of_5"] > 0
    assert figures["serve_ready_s"] >= 0
    assert len(Handler.asked) == 13, "each action has a path of its own, beside /v1/decode"
    assert all(figures[f"serve_{name}_ms"] > 0 for name in ("decode", "parse", "complete", "gallery", "gif"))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize("order", ["aligned", "path"])
def test_the_server_refuses_no_action(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    @contextmanager
    def serving(*flags: str) -> Iterator[None]:
        _, folder, _, host, _, port = flags
        stop = serve_here(Engine(load_npdraw(folder)), Serve(host=host, port=int(port)))
        yield
        stop()

    monkeypatch.setattr(studio.commands, "serving", serving)
    monkeypatch.setattr(studio, "CLIENTS", (1,))
    monkeypatch.setattr(studio, "QUICK_REQUESTS", 4)
    monkeypatch.setattr(studio, "REPEATS", 1)
    monkeypatch.setattr(studio, "MIXED_CLIENTS", 2)
    monkeypatch.setattr(studio, "QUICK_ROUNDS", 1)
    experiment = Experiment.model_validate({**TINY, "parse": {"order": order}})
    figures = studio.run(Workload(experiment, np.zeros((1, 1, 28, 28), np.uint8), quick=True))
    assert {figures[f"serve_{name}"] for name in ("refused", "failed", "lost", "wrong")} == {0}
