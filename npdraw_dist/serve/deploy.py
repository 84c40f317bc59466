"""The editor as a Ray Serve application: replicas of a model behind one HTTP proxy.

Each replica answers HTTP itself and decodes waiting requests in one batch. Requests that find all
slots and the short queue taken are answered 503 at once.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import ray
import torch
from fastapi import FastAPI
from ray import serve

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.pipeline.held_out import HeldOutImages
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve.api import LOOPBACK, Result, Service, build_app
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.schemas import DrawingResponse
from npdraw_dist.training.device import refuse_tf32

NAME = "npdraw_editor"
BATCH = 32
REQUEST_S = 60  # time limit of a request
SHUTDOWN_S = 5  # time that a replica has to finish its requests


@dataclass(frozen=True)
class ServeOptions:
    """use_gpu: one GPU a replica; None uses them if there are enough. ongoing, queued: requests a replica
    works on at once, and requests that may wait before others get 503."""

    host: str
    port: int
    replicas: int = 1
    use_gpu: bool | None = None
    ongoing: int = 32
    queued: int = 64


class Editor:
    """A replica: the model, and threads beside the event loop."""

    def __init__(self, model_folder: str) -> None:
        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(1)
        model = load_npdraw(model_folder).to("cuda" if gpu else "cpu")
        refuse_tf32(model.device)
        self.engine = Engine(model, HeldOutImages(model_folder, model.spec, "serve"))
        self._threads = ThreadPoolExecutor(2)  # so that an animation does not delay a decoding
        self.engine.decode([self.engine.sample(0, 1.0)])  # the first call is slow

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # The requests that arrive while a batch is decoded make up the next one; no request waits for others.
    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0)
    async def decode(self, z: list[PartSequence]) -> list[DrawingResponse]:
        return await self.run(self.engine.decode, z)


def deploy(model_folder: str, options: ServeOptions) -> None:
    """Starts the application on the running Ray and returns once it answers.

    model_folder: absolute, or a URI. Raises UserError if there are too few GPUs.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    require_gpus(options, gpus)
    gpu = gpus >= options.replicas if options.use_gpu is None else options.use_gpu
    hosts = LOOPBACK if options.host in LOOPBACK else ("*",)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": options.host, "port": options.port, "request_timeout_s": REQUEST_S},
        logging_config=quiet,
    )

    def app() -> FastAPI:
        return build_app(lambda: cast(Service, serve.get_replica_context().servable_object), hosts)

    deployment: Any = serve.deployment(
        serve.ingress(app)(Editor),
        name=NAME,
        num_replicas=options.replicas,
        max_ongoing_requests=options.ongoing,
        max_queued_requests=options.queued,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu)},
        logging_config=quiet,
    )
    serve.run(deployment.bind(model_folder), name=NAME, route_prefix="/")


def require_gpus(options: ServeOptions, gpus: int) -> None:
    """Raises UserError if each replica shall have a GPU and there are too few."""
    if options.use_gpu and gpus < options.replicas:
        raise UserError(
            f"--use_gpu true: {options.replicas} replicas need {options.replicas} GPUs; there are {gpus}"
        )


def require_free(host: str, port: int) -> None:
    """Raises UserError if the port is taken or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            if os.name == "posix":  # so that a port in TIME_WAIT counts as free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error}); choose another --port or --host"
        ) from None
