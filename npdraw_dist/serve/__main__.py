"""npdraw serve: the studio in the browser and its HTTP API.

One copy of the model is served in this process; several, or one on a cluster, by Ray Serve.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command, Model, parse_flags, run_command, validate
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.process import require_extra
from npdraw_dist.training.environment import restart_with_environment

if TYPE_CHECKING:
    from npdraw_dist.nn.npdraw import NPDraw
    from npdraw_dist.serve.replica import ServeOptions

TOKEN = "NPDRAW_TOKEN"  # other users of the machine can read a command's flags, but not its environment
STRANGERS_RATE = 50.0  # requests a second of an address, if other machines reach the server


class Serve(Command):
    """Serves the studio: watch a model draw, and put parts of one image on another. Ctrl-C stops it."""

    examples: ClassVar[tuple[str, ...]] = ("", "--model runs/digits --port 8080")

    model: Model = None
    port: int = Field(8000, ge=1, le=65535, description="port of the page and the API")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; 0.0.0.0 serves everyone on the network; see --token",
    )
    replicas: PositiveInt = Field(
        1, description="copies of the model that share the requests; from 2 on, on Ray Serve"
    )
    use_gpu: bool | None = Field(
        None, description="one GPU for each replica; if not given, used if there are enough"
    )

    token: str | None = Field(
        None,
        min_length=1,
        description=f"what requests must bear, else everyone is answered; better set {TOKEN}",
    )
    rate: PositiveFloat | None = Field(
        None,
        description="requests a second that an address may make; if not given, no limit with a --host of "
        f"this machine alone, else {STRANGERS_RATE:g}",
    )


def main(argv: Sequence[str]) -> None:
    command: Serve = validate(Serve, parse_flags(Serve, "npdraw_dist.serve", argv))
    require_extra("serve", "serve", "fastapi", "python_multipart", "uvicorn", "prometheus_client")

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.models import chosen_model, load_npdraw
    from npdraw_dist.serve.local import require_free
    from npdraw_dist.serve.replica import LOOPBACK, ServeOptions

    folder = chosen_model(command.model)
    model = load_npdraw(folder)  # an error here is one line; in a replica it is a long traceback
    rate = command.rate or (None if command.host in LOOPBACK else STRANGERS_RATE)
    token = command.token or os.environ.get(TOKEN) or None
    options = ServeOptions(
        command.host, command.port, command.replicas, command.use_gpu, token=token, rate=rate
    )
    require_free(command.host, command.port)
    on_ray = os.environ.get("RAY_ADDRESS") or command.replicas > 1
    stop = _on_ray(folder, options) if on_ray else _here(folder, model, options)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    address, key = f"http://{options.host}:{options.port}", "" if token is None else "#token=TOKEN"
    print(f"the studio: {address}{'/' + key if key else ''}", flush=True)
    print(f"its API:    {address}/docs (Ctrl-C stops both)", flush=True)
    if options.hosts == ("*",) and token is None:
        line = f"everyone who reaches this machine can use it: there is no login; set {TOKEN} for one"
        print(line, flush=True)
    stopped.wait()
    stop()


def _here(folder: str, model: "NPDraw", options: "ServeOptions") -> Callable[[], None]:
    """Serves in this process; returns what ends it."""
    from npdraw_dist.pipeline.models import local_device
    from npdraw_dist.serve.engine import open_engine
    from npdraw_dist.serve.local import Server

    server = Server(open_engine(folder, local_device(options.use_gpu), model), options)
    server.start()
    return server.stop


def _on_ray(folder: str, options: "ServeOptions") -> Callable[[], None]:
    """Serves on Ray Serve; returns what ends it."""
    from npdraw_dist.core.storage import display_path, open_filesystem
    from npdraw_dist.serve import deploy
    from npdraw_dist.training.launch import start_ray
    from npdraw_dist.training.workers import is_local, local_resources

    scale = ScaleConfig(num_workers=options.replicas)
    if is_local():
        deploy.require_gpus(options, int(local_resources(scale)["GPU"]))
    start_ray(scale, object_store_mb=128)
    deploy.deploy(folder if "://" in folder else display_path(*open_filesystem(folder)), options)
    return deploy.stop


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
