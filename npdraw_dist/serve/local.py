"""The studio in this process: one copy of the model behind uvicorn, without Ray."""

import os
import socket
import threading
import time

import torch
import uvicorn

from npdraw_dist.core.errors import UserError
from npdraw_dist.serve import Serve
from npdraw_dist.serve.api import build_app
from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.middleware import Limits
from npdraw_dist.serve.replica import ONGOING, QUEUED, REQUEST_S, SHUTDOWN_S, THREADS, Replica

START_S = 30  # time limit of the socket's opening


class Server:
    """The application at an address, in a thread of its own, so that this one waits for signals."""

    def __init__(self, engine: Engine, options: Serve) -> None:
        if engine.model.device.type == "cpu":  # the replica's threads share the cores
            torch.set_num_threads(max((os.cpu_count() or 1) // THREADS, 1))
        replica = Replica(engine)
        replica.warm_up()
        limits = Limits(options.token, options.rate, ONGOING + QUEUED)
        config = uvicorn.Config(
            build_app(lambda: replica, options.hosts, limits),
            host=options.host,
            port=options.port,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=REQUEST_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        """Returns once it listens. Raises UserError if it does not."""
        self._thread.start()
        stop = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > stop:
                raise UserError("the server did not start; choose another --port or --host")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends after the requests that are answered now, at most SHUTDOWN_S later."""
        self._server.should_exit = True
        self._thread.join(SHUTDOWN_S + 1)


def require_free(host: str, port: int) -> None:
    """Raises UserError if the port is taken or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error}); choose another --port or --host"
        ) from None
