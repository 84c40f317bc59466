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
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.npdraw import NPDraw

CLIENTS = (1, 8, 32)
MIXED_CLIENTS = 8  # each sends all actions in turn
QUICK_REQUESTS, FULL_REQUESTS = 200, 1_000
QUICK_ROUNDS, FULL_ROUNDS = 3, 15  # rounds of all actions for each mixed client
REPEATS = 9  # requests of each action alone
DRAWINGS = 32
PROPOSALS, GALLERY = 4, 12  # drawings asked for at once, as the page does
HOST = "127.0.0.1"
TIMEOUT_S = 60


@dataclass(frozen=True)
class Request:
    """One request. body: of a POST; None is a GET. image: the pixels that /decode must return."""

    path: str
    body: dict[str, Any] | None = None
    image: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Response:
    """The answer to `request`. status: of HTTP, 0 if no response came."""

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
    decodings = _decodings(model)
    each = _actions(decodings, model.grid.places)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    figures: Figures = {}
    responses: list[Response] = []

    def load(name: str, requests: Sequence[Request], clients: int, count: int) -> None:
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(_client, port, requests, number, count) for number in range(clients)]
            found = [response for client in asked for response in client.result()]
        seconds = time.perf_counter() - started
        responses.extend(found)
        good = [1e3 * response.seconds for response in found if response.status == 200]
        figures[f"serve_{name}requests_per_s_of_{clients}"] = len(good) / seconds
        for percent in (50, 95):
            figures[f"serve_{name}p{percent}_ms_of_{clients}"] = float(np.percentile(good, percent))

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        started = time.perf_counter()
        with commands.serving("--model", folder, "--host", HOST, "--port", str(port)):
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


def _decodings(model: NPDraw) -> list[Request]:
    """Requests to decode drawings of the prior, with the images that the model decodes them to."""
    drawn = model.sample_prior(DRAWINGS, torch.Generator().manual_seed(0))
    images = (model.decode(model.render(drawn)) * 255).round().to(torch.uint8).numpy()
    requests = []
    for row, image in enumerate(images):
        z = {name: getattr(drawn, name)[row].tolist() for name in ("whether", "where", "what")}
        # In the layout of a decoded PNG: (H, W) if grey, else (H, W, C).
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        requests.append(Request("/v1/decode", {"z": z}, pixels))
    return requests


def _actions(decodings: Sequence[Request], places: int) -> dict[str, Request]:
    """Action -> a request for it on the first two drawings. places: L."""
    a, b = ((request.body or {})["z"] for request in decodings[:2])
    image, buffer, upper = decodings[0].image, io.BytesIO(), list(range(places // 2))
    # As the page asks: places before and after kept ones are free, which takes all particles.
    drawn = sorted({where for where, on in zip(a["where"], a["whether"], strict=True) if on})
    assert image is not None, "a decoding knows its image"
    Image.fromarray(image).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    return {
        "decode": decodings[0],
        "parse": Request("/v1/parse", {"image": png}),
        "compose": Request("/v1/compose", {"a": a, "b": b, "places": upper}),
        "edit": Request("/v1/edit", {"z": a, "edit": {"kind": "put", "place": 0, "part": 0}}),
        "steps": Request("/v1/steps", {"z": a}),
        "interpolate": Request("/v1/interpolate", {"a": a, "b": b}),
        "sample": Request("/v1/sample", {"seed": 0}),
        "gallery": Request(f"/v1/gallery?n={GALLERY}&seed=0"),
        "complete": Request("/v1/complete", {"z": a, "keep": drawn, "n": PROPOSALS}),
        "next": Request("/v1/next", {"z": a}),
        "svg": Request("/v1/drawing.svg", {"z": a}),
        "pdf": Request("/v1/drawing.pdf", {"z": a}),
        "strip": Request("/v1/strip.png", {"z": a}),
        "gif": Request("/v1/steps.gif", {"z": a}),
    }


def _client(port: int, requests: Sequence[Request], number: int, count: int) -> list[Response]:
    """One client: `count` requests, one after another, on one connection."""
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    responses = []
    for turn in range(count):
        request = requests[(number + turn) % len(requests)]
        method, body = ("POST", json.dumps(request.body)) if request.body else ("GET", None)
        started = time.perf_counter()
        try:
            connection.request(method, request.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (OSError, HTTPException):
            status, content = 0, b""
            connection.close()  # the next request opens it again
        responses.append(Response(request, time.perf_counter() - started, status, content))
    connection.close()
    return responses
