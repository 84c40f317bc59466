"""python -m npdraw_dist.serve: the editor in the browser, and its HTTP API, on Ray Serve."""

import os
import signal
import threading
from collections.abc import Sequence

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.training.environment import restart_with_allocator


class Serve(Command):
    """Serves the editor: watch a model draw, and put parts of one image on another. Ctrl-C ends it."""

    model: str | None = Field(None, description="a model folder or URI; that of the last run if not given")
    port: int = Field(8000, ge=1, le=65535, description="where the page is")
    host: str = Field(
        "127.0.0.1", description="this machine only; 0.0.0.0 lets everyone who reaches it in, unasked"
    )
    replicas: PositiveInt = Field(1, description="copies of the model that share the requests")
    use_gpu: bool | None = Field(None, description="one GPU a replica; as found where not given")


def main(argv: Sequence[str]) -> None:
    command: Serve = validate(Serve, parse_flags(Serve, "npdraw_dist.serve", argv))

    # Torch and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.core.storage import open_filesystem, shown
    from npdraw_dist.pipeline.models import latest_model, load_npdraw

    folder = command.model or latest_model()
    load_npdraw(folder)  # told here in one line where it is none
    from npdraw_dist.serve import deploy
    from npdraw_dist.training.launch import start_ray

    deploy.require_free(command.host, command.port)
    start_ray(ScaleConfig(num_workers=command.replicas, object_store_mb=128))
    whole = folder if "://" in folder else shown(*open_filesystem(folder))
    deploy.deploy(whole, command.host, command.port, command.replicas, command.use_gpu)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print(f"the editor: http://{command.host}:{command.port}", flush=True)
    print(f"its API:    http://{command.host}:{command.port}/docs (Ctrl-C ends both)", flush=True)
    if command.host not in ("127.0.0.1", "localhost"):
        print("open to everyone who reaches this machine: there is no login", flush=True)
    ended.wait()
    if os.environ.get("RAY_ADDRESS"):  # the cluster goes on; a Ray of our own ends with us
        deploy.stop()


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
