"""Serves the studio in this process, with one copy of the model behind uvicorn and without Ray."""

import socket
import threading
import time
from collections.abc import Callable

import torch
import uvicorn

from npdraw_dist.serve import Serve
from npdraw_dist.serve.api import build_app
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.replica import ONGOING, QUEUED, REQUEST_S, SHUTDOWN_S, THREADS, Replica
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import cpu_count

START_S = 30  # seconds that the server may take to start


def serve_in_process(engine: Engine, options: Serve) -> Callable[[], None]:
    """Starts a server thread. Returns, once it listens, the function that ends it within SHUTDOWN_S.

    Raises UserError if the server does not listen within START_S.
    """
    if engine.model.device.type == "cpu":  # the replica's threads share the cores
        torch.set_num_threads(max(cpu_count() // THREADS, 1))
    replica = Replica(engine)
    replica.warm_up()
    config = uvicorn.Config(
        build_app(lambda: replica, options, ONGOING + QUEUED),
        host=options.host,
        port=options.port,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=REQUEST_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    latest = time.monotonic() + START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > latest:
            raise UserError("the server did not start; choose another --port or --host")
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join(SHUTDOWN_S + 1)

    return stop


def require_free(host: str, port: int) -> None:
    """Raises UserError if the port is taken or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error}); choose another --port or --host"
        ) from None
