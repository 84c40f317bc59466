"""python -m npdraw_dist.serve: the editor in the browser and its HTTP API, on Ray Serve."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.extras import require_extra
from npdraw_dist.training.environment import restart_with_allocator


class Serve(Command):
    """Serves the editor: watch a model draw, and put parts of one image on another. Ctrl-C stops it."""

    examples: ClassVar[tuple[str, ...]] = ("", "--model runs/digits/model --port 8080")

    model: str | None = Field(
        None, description="a run, a model folder, a URI or an id of the hub; if not given, the last run"
    )
    port: int = Field(8000, ge=1, le=65535, description="port of the page and the API")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; 0.0.0.0 serves everyone on the network, without login",
    )
    replicas: PositiveInt = Field(1, description="copies of the model that share the requests")
    use_gpu: bool | None = Field(
        None, description="one GPU for each replica; if not given, used if there are enough"
    )


def main(argv: Sequence[str]) -> None:
    command: Serve = validate(Serve, parse_flags(Serve, "npdraw_dist.serve", argv))
    require_extra("serve", "serve", "fastapi", "python_multipart", "uvicorn")

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.core.storage import display_path, open_filesystem
    from npdraw_dist.pipeline.models import chosen_model, load_npdraw

    folder = chosen_model(command.model)
    load_npdraw(folder)  # an error here is one line; in a replica it is a long traceback
    from ray import serve

    from npdraw_dist.serve.deploy import ServeOptions, deploy, require_free, require_gpus
    from npdraw_dist.training.launch import start_ray
    from npdraw_dist.training.workers import is_local, local_resources

    scale = ScaleConfig(num_workers=command.replicas, object_store_mb=128)
    options = ServeOptions(command.host, command.port, command.replicas, command.use_gpu)
    require_free(command.host, command.port)
    if is_local():
        require_gpus(options, int(local_resources(scale)["GPU"]))
    start_ray(scale)
    whole = folder if "://" in folder else display_path(*open_filesystem(folder))
    deploy(whole, options)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    print(f"the editor: http://{command.host}:{command.port}", flush=True)
    print(f"its API:    http://{command.host}:{command.port}/docs (Ctrl-C stops both)", flush=True)
    if command.host not in ("127.0.0.1", "localhost"):
        print("everyone who reaches this machine can use it: there is no login", flush=True)
    stopped.wait()
    if os.environ.get("RAY_ADDRESS"):  # a cluster keeps running; a local Ray ends with this process
        serve.shutdown()


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
