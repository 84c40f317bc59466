"""Serves the studio as a Ray Serve application, with replicas of a model behind one HTTP proxy.

Each replica answers HTTP itself. A request gets 503 at once if all slots and the short queue are full.
"""

import logging
import os
from typing import Any, cast

import ray
import torch
from fastapi import FastAPI
from ray import serve

from npdraw_dist.serve import Serve
from npdraw_dist.serve.api import build_app
from npdraw_dist.serve.engine import open_engine
from npdraw_dist.serve.replica import ONGOING, QUEUED, REQUEST_S, SHUTDOWN_S, Replica
from npdraw_dist.system.errors import UserError

NAME = "npdraw_studio"


class Studio(Replica):
    """A replica in an actor of Ray Serve."""

    def __init__(self, model_folder: str) -> None:
        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(1)
        super().__init__(open_engine(model_folder, "cuda" if gpu else "cpu"))
        self.warm_up()


def deploy(model_folder: str, options: Serve) -> None:
    """Starts the application on the running Ray and returns once it answers.

    model_folder: an absolute path or a URI. Raises UserError if there are too few GPUs, or if the cluster
    serves a studio already.
    """
    running = serve.status()
    if NAME in running.applications:
        raise UserError(
            "this cluster serves a studio already; end that command with Ctrl-C, or, if it is gone, run "
            f"python -c 'from ray import serve; serve.delete({NAME!r})' there"
        )
    if running.proxies:
        print("Ray Serve runs here already; it keeps its address and ignores --host and --port", flush=True)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    require_gpus(options, gpus)
    gpu = gpus >= options.replicas if options.use_gpu is None else options.use_gpu
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": options.host, "port": options.port, "request_timeout_s": REQUEST_S},
        logging_config=quiet,
    )

    def app() -> FastAPI:
        return build_app(lambda: cast(Replica, serve.get_replica_context().servable_object), options)

    deployment: Any = serve.deployment(
        serve.ingress(app)(Studio),
        name=NAME,
        num_replicas=options.replicas,
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu)},
        logging_config=quiet,
    )
    serve.run(deployment.bind(model_folder), name=NAME, route_prefix="/")


def stop() -> None:
    """Ends this application on a cluster, but no other application. A local Ray ends with this process."""
    if os.environ.get("RAY_ADDRESS"):
        serve.delete(NAME)
        if not serve.status().applications:
            serve.shutdown()


def require_gpus(options: Serve, gpus: int) -> None:
    """Raises UserError if GPUs are requested and there are fewer than replicas."""
    if options.use_gpu and gpus < options.replicas:
        raise UserError(
            f"--use-gpu: {options.replicas} replicas need {options.replicas} GPUs; there are {gpus}"
        )
