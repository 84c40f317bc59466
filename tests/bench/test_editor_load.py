"""The load on the editor's API counts what a server does wrong: against one that misbehaves on purpose."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.bench import editor_load
from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.schemas import DecodeRequest

# What becomes of each ten requests.
TURNS = ("good", "refused", "good", "failed", "wrong", "good", "lost", "good", "good", "good")
TINY: dict[str, Any] = {
    "bank": {"size": 5},
    "prior": {"width": 8, "depth": 1, "attention_heads": 2},
    "vae": {"encoder_width": 8, "decoder_width": 8, "encoder_depth": 0, "decoder_depth": 0},
}


class Handler(BaseHTTPRequestHandler):
    """Decodes as the API does, or not, by TURNS."""

    protocol_version = "HTTP/1.1"
    engine: Engine
    turns: Iterator[str]
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            turn = next(self.turns)
            z = self.engine.sequence(DecodeRequest.model_validate_json(body).z)
            if turn == "wrong":
                z = z.map(torch.zeros_like)
            drawing = self.engine.decode([z])[0].model_dump_json().encode()
        if turn == "lost":
            self.close_connection = True
            return
        self.send_response({"refused": 503, "failed": 500}.get(turn, 200))
        self.send_header("Content-Length", str(len(drawing)))
        self.end_headers()
        self.wfile.write(drawing)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_what_is_refused_failed_lost_and_wrong_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def serving(folder: str, host: str, port: int) -> Iterator[None]:
        model = load_npdraw(folder)
        Handler.engine, Handler.turns = Engine(model), itertools.cycle(TURNS)
        server = ThreadingHTTPServer((host, port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()
        server.server_close()

    monkeypatch.setattr(editor_load.commands, "serving", serving)
    monkeypatch.setattr(editor_load, "CLIENTS", (1, 4))
    monkeypatch.setattr(editor_load, "QUICK_REQUESTS", 40)
    work = Workload(Experiment.model_validate(TINY), np.zeros((1, 1, 28, 28), np.uint8), quick=True)
    figures = editor_load.run(work)
    counts = {name: figures[f"serve_{name}"] for name in ("refused", "failed", "lost", "wrong")}
    assert counts == {"refused": 8, "failed": 8, "lost": 8, "wrong": 8}
    for clients in (1, 4):
        assert figures[f"serve_requests_per_s_of_{clients}"] > 0
        assert figures[f"serve_p50_ms_of_{clients}"] <= figures[f"serve_p95_ms_of_{clients}"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
