"""Section `serve`: the editor's API on loopback, asked by 1, 8 and 32 clients at once.

Each client keeps its connection and sends its next request when the last one is answered. The model
has the experiment's sizes and random weights, which cost what trained ones cost.
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

from npdraw_dist.bench import processes
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
    """A body for /decode, and the pixels that it must give."""

    body: bytes
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Answer:
    """To request `index`. status: of HTTP, 0 where none came."""

    index: int
    seconds: float
    status: int
    content: bytes


def run(work: Workload) -> Figures:
    """Decoded drawings a second and their latency, and how many were lost, wrong, refused or failed."""
    model = _random_model(work)
    requests = _requests(model)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    figures: Figures = {}
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with processes.serving(folder, HOST, port):
            for clients in CLIENTS:
                count = (QUICK_REQUESTS if work.quick else FULL_REQUESTS) // clients
                found, seconds = _load(port, requests, clients, count)
                answers += found
                good = [1e3 * answer.seconds for answer in found if answer.status == 200]
                figures[f"serve_requests_per_s_of_{clients}"] = len(good) / seconds
                figures[f"serve_p50_ms_of_{clients}"] = float(np.quantile(good, 0.5))
                figures[f"serve_p95_ms_of_{clients}"] = float(np.quantile(good, 0.95))
    return {
        **figures,
        "serve_refused": sum(answer.status == 503 for answer in answers),
        "serve_failed": sum(answer.status not in (0, 200, 503) for answer in answers),
        "serve_lost": sum(answer.status == 0 for answer in answers),
        "serve_wrong": sum(a.status == 200 and _wrong(a.content, requests[a.index].image) for a in answers),
    }


def _random_model(work: Workload) -> NPDraw:
    torch.manual_seed(work.experiment.seed)
    model = NPDraw(ModelSpec.of(work.experiment)).eval()
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    return model


def _requests(model: NPDraw) -> list[Request]:
    """Drawings of the prior, and the image that the model decodes each to."""
    z = model.sample_prior(DRAWINGS, torch.Generator().manual_seed(0))
    images = (model.decode(model.render(z)) * 255).round().to(torch.uint8).numpy()
    steps = {name: getattr(z, name).tolist() for name in ("whether", "where", "what")}
    return [
        Request(json.dumps({"z": {name: rows[i] for name, rows in steps.items()}}).encode(), _picture(image))
        for i, image in enumerate(images)
    ]


def _picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) in the layout of a decoded PNG: (H, W) where it is grey, else (H, W, C)."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _pixels(png: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image)


def _load(port: int, requests: list[Request], clients: int, count: int) -> tuple[list[Answer], float]:
    """The answers of all clients, and the seconds that they took together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(_ask, port, requests, number, count) for number in range(clients)]
        answers = [answer for client in asked for answer in client.result()]
    return answers, time.perf_counter() - started


def _ask(port: int, requests: list[Request], number: int, count: int) -> list[Answer]:
    """One client: `count` requests, one after another, on one connection."""
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    answers = []
    for turn in range(count):
        index = (number + turn) % len(requests)
        started = time.perf_counter()
        try:
            connection.request("POST", "/decode", requests[index].body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, HTTPException):
            status, content = 0, b""
            connection.close()  # the next request opens it again
        answers.append(Answer(index, time.perf_counter() - started, status, content))
    connection.close()
    return answers


def _wrong(content: bytes, expected: NDArray[np.uint8]) -> bool:
    """Whether the image is another; batches of other sizes may round a pixel otherwise."""
    found = _pixels(json.loads(content)["image"]).astype(int)
    return found.shape != expected.shape or bool((np.abs(found - expected) > 1).any())
