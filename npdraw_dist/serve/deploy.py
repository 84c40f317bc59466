"""The editor as a Ray Serve application: replicas of a model behind one HTTP proxy.

Each replica answers HTTP itself and decodes the requests that wait together in one batch. What goes
beyond its slots and a short queue is answered by 503 at once.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import ray
import torch
from fastapi import FastAPI
from ray import serve

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.pipeline.held_out import HeldOutImages
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve.api import LOOPBACK, build_app
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.schemas import Drawing

NAME = "npdraw_editor"
ONGOING, QUEUED = 32, 64  # requests at work in a replica; waiting before 503
BATCH = 32
REQUEST_S = 60  # s; longer requests are ended
GOODBYE_S = 5  # s that a replica may take to finish what it is at


class Editor:
    """A replica: the model, and a thread beside the event loop."""

    def __init__(self, model_folder: str) -> None:
        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(1)
        model = load_npdraw(model_folder).to("cuda" if gpu else "cpu")
        self.engine = Engine(model, HeldOutImages(model_folder))
        self._threads = ThreadPoolExecutor(2)  # an animation does not hold up a decoding
        self.engine.draw([self.engine.sample(0, 1.0)])  # the first call is slow

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # What waits while a batch is at work makes the next one; nothing is waited for.
    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0)
    async def draw(self, z: list[PartSequence]) -> list[Drawing]:
        drawings: list[Drawing] = await self.run(self.engine.draw, z)
        return drawings


def deploy(
    model_folder: str,
    host: str,
    port: int,
    replicas: int = 1,
    use_gpu: bool | None = None,
    ongoing: int = ONGOING,
    queued: int = QUEUED,
) -> None:
    """Starts the application on the running Ray, and returns once it answers.

    model_folder: absolute, or a URI. Raises UserError where there are too few GPUs.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if use_gpu and gpus < replicas:
        raise UserError(f"{replicas} replicas need {replicas} GPUs; the cluster has {gpus}")
    gpu = gpus >= replicas if use_gpu is None else use_gpu
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": REQUEST_S},
        logging_config=quiet,
    )

    def app() -> FastAPI:
        return build_app(lambda: cast(Editor, serve.get_replica_context().servable_object), hosts)

    deployment: Any = serve.deployment(
        serve.ingress(app)(Editor),
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        graceful_shutdown_timeout_s=GOODBYE_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu)},
        logging_config=quiet,
    )
    serve.run(deployment.bind(model_folder), name=NAME, route_prefix="/")


def stop() -> None:
    """Ends the application and the proxy."""
    serve.shutdown()


def require_free(host: str, port: int) -> None:
    """Raises UserError where `port` cannot be listened at."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            if os.name == "posix":  # a port that was just left is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port} ({error}); choose another --port") from None
