"""Section `serve`: the editor's API on the loopback, under 1, 8 and 32 clients at once.

Each client keeps its connection, and sends its next request when the last one is answered. The model has
the experiment's sizes and random weights, which cost as much as trained ones.
"""

import base64
import io
import json
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.bench import commands
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.npdraw import NPDraw

CLIENTS = (1, 8, 32)
QUICK_REQUESTS, FULL_REQUESTS = 200, 1_000
DRAWINGS = 32
HOST = "127.0.0.1"
TIMEOUT_S = 60


@dataclass(frozen=True)
class Request:
    """A body for /decode, and the pixels that it must return."""

    body: bytes
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Response:
    """To `request`. status: of HTTP, 0 if no response came."""

    request: Request
    seconds: float
    status: int
    content: bytes

    @property
    def wrong(self) -> bool:
        """True if the image is another one; batches of other sizes may round a pixel differently."""
        if self.status != 200:
            return False
        with Image.open(io.BytesIO(base64.b64decode(json.loads(self.content)["image"]))) as image:
            pixels = np.asarray(image).astype(int)
        expected = self.request.image
        return pixels.shape != expected.shape or bool((np.abs(pixels - expected) > 1).any())


def run(work: Workload) -> Figures:
    """Decoded drawings a second and their latency; how many were lost, wrong, refused or failed."""
    torch.manual_seed(work.experiment.seed)
    model = NPDraw(ModelSpec.of(work.experiment)).eval()
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    requests = _requests(model)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    figures: Figures = {}
    responses: list[Response] = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with commands.serving(folder, HOST, port):
            for clients in CLIENTS:
                count = (QUICK_REQUESTS if work.quick else FULL_REQUESTS) // clients
                found, seconds = _load(port, requests, clients, count)
                responses += found
                good = [1e3 * response.seconds for response in found if response.status == 200]
                figures[f"serve_requests_per_s_of_{clients}"] = len(good) / seconds
                figures[f"serve_p50_ms_of_{clients}"] = float(np.quantile(good, 0.5))
                figures[f"serve_p95_ms_of_{clients}"] = float(np.quantile(good, 0.95))
    return {
        **figures,
        "serve_refused": sum(response.status == 503 for response in responses),
        "serve_failed": sum(response.status not in (0, 200, 503) for response in responses),
        "serve_lost": sum(response.status == 0 for response in responses),
        "serve_wrong": sum(response.wrong for response in responses),
    }


def _requests(model: NPDraw) -> list[Request]:
    """Drawings of the prior, each with the image that the model decodes it to."""
    z = model.sample_prior(DRAWINGS, torch.Generator().manual_seed(0))
    images = (model.decode(model.render(z)) * 255).round().to(torch.uint8).numpy()
    steps = {name: getattr(z, name).tolist() for name in ("whether", "where", "what")}
    return [
        Request(json.dumps({"z": {name: rows[i] for name, rows in steps.items()}}).encode(), _layout(image))
        for i, image in enumerate(images)
    ]


def _layout(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) in the layout of a decoded PNG: (H, W) if grey, else (H, W, C)."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _load(port: int, requests: list[Request], clients: int, count: int) -> tuple[list[Response], float]:
    """The responses to all clients, and the seconds that they took together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = [pool.submit(_client, port, requests, number, count) for number in range(clients)]
        responses = [response for client in each for response in client.result()]
    return responses, time.perf_counter() - started


def _client(port: int, requests: list[Request], number: int, count: int) -> list[Response]:
    """One client: `count` requests, one after another, on one connection."""
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    responses = []
    for turn in range(count):
        request = requests[(number + turn) % len(requests)]
        started = time.perf_counter()
        try:
            connection.request("POST", "/decode", request.body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (OSError, HTTPException):
            status, content = 0, b""
            connection.close()  # the next request opens it again
        responses.append(Response(request, time.perf_counter() - started, status, content))
    connection.close()
    return responses
