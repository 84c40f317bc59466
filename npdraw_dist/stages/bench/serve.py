"""Section `serve`: the editor's API on loopback, asked by 1, 8 and 32 clients at once.

Each client keeps its connection and sends its next request when the last one is answered. The model
has the experiment's sizes and random weights, which cost what trained ones cost.
"""

import base64
import http.client
import io
import json
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.dist.launch import start_ray
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.stages.bench.workload import Figures, Workload
from npdraw_dist.stages.serving import deploy
from npdraw_dist.stages.serving.engine import Engine

CLIENTS = (1, 8, 32)
QUICK_REQUESTS, FULL_REQUESTS = 200, 1_000
DRAWINGS = 32
HOST = "127.0.0.1"
TIMEOUT_S = 60


@dataclass
class Tally:
    """What came of the requests of some clients. seconds: of each that was answered by 200."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0  # 503
    failed: int = 0  # any other status
    lost: int = 0  # no answer
    wrong: int = 0  # not the image that the model decodes


def run(work: Workload) -> Figures:
    """Decoded drawings a second and their latency, and how many were lost, wrong, refused or failed."""
    model = _random_model(work)
    requests = _requests(model)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    figures: Figures = {}
    total = Tally()
    start_ray(ScaleConfig(object_store_mb=128))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        deploy.deploy(folder, HOST, port)
        try:
            for clients in CLIENTS:
                count = (QUICK_REQUESTS if work.quick else FULL_REQUESTS) // clients
                tally, seconds = _load(port, requests, clients, count)
                milliseconds = 1e3 * np.array(tally.seconds or [np.inf])
                figures[f"serve_requests_per_s_of_{clients}"] = len(tally.seconds) / seconds
                figures[f"serve_p50_ms_of_{clients}"] = float(np.quantile(milliseconds, 0.5))
                figures[f"serve_p95_ms_of_{clients}"] = float(np.quantile(milliseconds, 0.95))
                for name in ("refused", "failed", "lost", "wrong"):
                    setattr(total, name, getattr(total, name) + getattr(tally, name))
        finally:
            deploy.stop()
    return figures | {
        f"serve_{name}": getattr(total, name) for name in ("refused", "failed", "lost", "wrong")
    }


def _random_model(work: Workload) -> NPDraw:
    torch.manual_seed(work.experiment.seed)
    model = NPDraw(ModelSpec.of(work.experiment)).eval()
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    return model


def _requests(model: NPDraw) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """Bodies for /decode, and the pixels that each must give."""
    engine = Engine(model)
    drawings = [engine.draw([engine.sample(seed, 1.0)])[0] for seed in range(DRAWINGS)]
    return [(json.dumps({"z": d.z.model_dump()}).encode(), _pixels(d.image)) for d in drawings]


def _pixels(png: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image)


def _load(
    port: int, requests: list[tuple[bytes, NDArray[np.uint8]]], clients: int, count: int
) -> tuple[Tally, float]:
    """`clients` threads of `count` requests each; the seconds that all of them took."""
    tallies = [Tally() for _ in range(clients)]
    answers: list[list[tuple[int, bytes]]] = [[] for _ in range(clients)]

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
        tally = tallies[number]
        for turn in range(count):
            index = (number + turn) % len(requests)
            started = time.perf_counter()
            try:
                connection.request(
                    "POST", "/decode", requests[index][0], {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                tally.lost += 1
                connection.close()
                continue
            if answer.status == 200:
                tally.seconds.append(time.perf_counter() - started)
                answers[number].append((index, content))
            elif answer.status == 503:
                tally.refused += 1
            else:
                tally.failed += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    total = Tally()
    for tally in tallies:
        total.seconds += tally.seconds
        for name in ("refused", "failed", "lost"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    total.wrong = sum(_wrong(content, requests[index][1]) for found in answers for index, content in found)
    return total, seconds


def _wrong(content: bytes, expected: NDArray[np.uint8]) -> bool:
    """Whether the image is another; batches of other sizes may round a pixel otherwise."""
    found = _pixels(json.loads(content)["image"]).astype(int)
    return found.shape != expected.shape or bool((np.abs(found - expected) > 1).any())
