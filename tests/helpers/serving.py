"""The studio's server on a free port of this process, and a client of the API without a server."""

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.pipeline.trained_models import load_npdraw
from npdraw_dist.serve import Serve
from npdraw_dist.serve.api import build_app
from npdraw_dist.serve.engine import open_engine
from npdraw_dist.serve.local import serve_in_process
from npdraw_dist.serve.replica import Replica
from tests.helpers.studio_models import as_bytes, pixels

Json = dict[str, Any]
LATENTS = ("whether", "where", "what")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, token: str | None = None) -> Iterator[str]:
    """The address of a server of the model, until the block ends."""
    port = free_port()
    stop = serve_in_process(open_engine(str(folder)), Serve(port=port, token=token))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop()


class Served:
    """A client of the API, and the model whose results the API must return."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.replica = folder, Replica(open_engine(str(folder)))
        self.client = self.client_of()
        self.model = load_npdraw(str(folder))
        self.everywhere = list(range(self.model.grid.places))

    def client_of(self, at_once: int | None = None, raising: bool = True, **options: Any) -> TestClient:
        """A client of the application with these options of `serve`."""
        app = build_app(lambda: self.replica, Serve(**options), at_once)
        return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=raising)

    def get(self, path: str, **query: Any) -> Json:
        answer = self.client.get(f"/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, path: str, status: int = 200, **body: Any) -> Json:
        answer = self.client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def file(self, path: str, **body: Any) -> bytes:
        return self.client.post(f"/v1/{path}", json=body).content

    def upload(self, content: bytes, query: str = "?invert=no&crop=no") -> Json:
        return dict(self.client.post(f"/v1/encode{query}", files={"file": ("a.png", content)}).json())

    def check(self, drawing: Json) -> None:
        """Fails unless canvas, image and log p(z) are those of the z and u of the response."""
        z = PartSequence(*(torch.tensor([drawing["z"][name]]) for name in LATENTS))
        canvas, u = self.model.render(z), drawing["z"]["u"]
        if u is not None:
            assert self.model.appearance is not None
            numbers = torch.frombuffer(bytearray(base64.b64decode(u)), dtype=torch.float32)
            u = numbers.view(1, *self.model.appearance.shape)
        np.testing.assert_array_equal(pixels(drawing["canvas"]), as_bytes(canvas[0]))
        off = pixels(drawing["image"]).astype(int) - as_bytes(self.model.decode(canvas, u)[0])
        assert np.abs(off).max() <= 1
        assert drawing["log_prior"] == pytest.approx(float(self.model.prior_log_prob(z)), abs=1e-3)
        assert drawing["parts"] == sum(drawing["z"]["whether"])
