"""Section `serve`: the studio's API on the loopback: each action alone, decodings and a mix under load.

Each client keeps its connection, and sends its next request when the last one is answered. The model has
the experiment's sizes and random weights, which cost as much as trained ones.
"""

import base64
import io
import json
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.bench import commands
from npdraw_dist.bench.editor_actions import Request, actions, decoding
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw

CLIENTS = (1, 8, 32)
MIXED_CLIENTS = 8  # each sends all actions in turn
QUICK_REQUESTS, FULL_REQUESTS = 200, 1_000
QUICK_ROUNDS, FULL_ROUNDS = 3, 15  # of all actions, of each mixed client
REPEATS = 9  # of each action alone
DRAWINGS = 32
HOST = "127.0.0.1"
TIMEOUT_S = 60
JSON = {"Content-Type": "application/json"}


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
        expected = self.request.image
        if self.status != 200 or expected is None:
            return False
        with Image.open(io.BytesIO(base64.b64decode(json.loads(self.content)["image"]))) as image:
            pixels = np.asarray(image).astype(int)
        return pixels.shape != expected.shape or bool((np.abs(pixels - expected) > 1).any())


def run(work: Workload) -> Figures:
    """Latency of each action; decodings and mixed actions a second under load, and what went wrong of all."""
    torch.manual_seed(work.experiment.seed)
    model = NPDraw(ModelSpec.of(work.experiment)).eval()
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    steps, images = _drawings(model)
    decodings = [decoding(z, image) for z, image in zip(steps, images, strict=True)]
    each = actions(steps[0], steps[1], images[0], model.grid.places)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    figures: Figures = {}
    responses: list[Response] = []

    def load(name: str, requests: Sequence[Request], clients: int, count: int) -> None:
        found, seconds = _load(port, requests, clients, count)
        responses.extend(found)
        good = [1e3 * response.seconds for response in found if response.status == 200]
        figures[f"serve_{name}requests_per_s_of_{clients}"] = len(good) / seconds
        figures[f"serve_{name}p50_ms_of_{clients}"] = float(np.quantile(good, 0.5))
        figures[f"serve_{name}p95_ms_of_{clients}"] = float(np.quantile(good, 0.95))

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        started = time.perf_counter()
        with commands.serving(folder, HOST, port):
            figures["serve_ready_s"] = time.perf_counter() - started
            for name, request in each.items():
                alone = _client(port, [request], 0, 1 + REPEATS)[1:]  # the first one may build what stays
                responses += alone
                figures[f"serve_{name}_ms"] = 1e3 * float(np.median([one.seconds for one in alone]))
            for clients in CLIENTS:
                load("", decodings, clients, (QUICK_REQUESTS if work.quick else FULL_REQUESTS) // clients)
            rounds = QUICK_ROUNDS if work.quick else FULL_ROUNDS
            load("mixed_", list(each.values()), MIXED_CLIENTS, rounds * len(each))
    return {
        **figures,
        "serve_refused": sum(response.status == 503 for response in responses),
        "serve_failed": sum(response.status not in (0, 200, 503) for response in responses),
        "serve_lost": sum(response.status == 0 for response in responses),
        "serve_wrong": sum(response.wrong for response in responses),
    }


def _drawings(model: NPDraw) -> tuple[list[dict[str, Any]], list[NDArray[np.uint8]]]:
    """Drawings of the prior as the API takes them, and the images that the model decodes them to."""
    z = model.sample_prior(DRAWINGS, torch.Generator().manual_seed(0))
    images = (model.decode(model.render(z)) * 255).round().to(torch.uint8).numpy()
    return [_steps(z[row : row + 1]) for row in range(DRAWINGS)], [_layout(image) for image in images]


def _steps(z: PartSequence) -> dict[str, Any]:
    return {name: getattr(z, name)[0].tolist() for name in ("whether", "where", "what")}


def _layout(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) in the layout of a decoded PNG: (H, W) if grey, else (H, W, C)."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _load(port: int, requests: Sequence[Request], clients: int, count: int) -> tuple[list[Response], float]:
    """The responses to all clients, and the seconds that they took together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = [pool.submit(_client, port, requests, number, count) for number in range(clients)]
        responses = [response for client in each for response in client.result()]
    return responses, time.perf_counter() - started


def _client(port: int, requests: Sequence[Request], number: int, count: int) -> list[Response]:
    """One client: `count` requests, one after another, on one connection."""
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    responses = []
    for turn in range(count):
        request = requests[(number + turn) % len(requests)]
        started = time.perf_counter()
        try:
            connection.request(request.method, request.path, request.body, JSON)
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (OSError, HTTPException):
            status, content = 0, b""
            connection.close()  # the next request opens it again
        responses.append(Response(request, time.perf_counter() - started, status, content))
    connection.close()
    return responses
