"""Serves the studio, a web page with an HTTP API (the command `npdraw serve`).

This process serves one copy of the model. Ray Serve serves several copies, or one copy on a cluster.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from npdraw_dist.config.cli import parse_flags, run_command, validate
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.start import require_ray
from npdraw_dist.serve import TOKEN, Serve
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import require_extra

if TYPE_CHECKING:
    from npdraw_dist.nn.npdraw import NPDraw


def main(argv: Sequence[str]) -> None:
    command: Serve = validate(Serve, parse_flags(Serve, "npdraw_dist.serve", argv))
    require_extra("serve", "serve", "fastapi", "python_multipart", "uvicorn")
    on_ray = os.environ.get("RAY_ADDRESS") or command.replicas > 1
    if on_ray:
        require_ray("serve with --replicas or RAY_ADDRESS")

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.trained_models import chosen_model, load_npdraw
    from npdraw_dist.serve.local import require_free

    folder = chosen_model(command.model)
    model = load_npdraw(folder)  # an error in this process is one line; in a replica, a long traceback
    token = command.token or os.environ.get(TOKEN) or None
    if token and not (token.isascii() and token.isprintable() and not set(token) & set(" &%")):
        raise UserError(
            "a token must be ASCII without spaces, & and %, since clients encode these differently"
        )
    options = command.model_copy(update={"token": token})
    require_free(options.host, options.port)
    stop = _on_ray(folder, options) if on_ray else _in_process(folder, model, options)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    host = f"[{options.host}]" if ":" in options.host else options.host
    address, key = f"http://{host}:{options.port}", "" if token is None else "#token=TOKEN"
    print(f"the studio: {address}{'/' + key if key else ''}", flush=True)
    print(f"its API:    {address}/openapi.json (Ctrl-C stops both)", flush=True)
    if options.hosts == ("*",) and token is None:
        line = f"everyone who reaches this machine can use it: there is no login; set {TOKEN} to require one"
        print(line, flush=True)
    stopped.wait()
    stop()


def _in_process(folder: str, model: "NPDraw", options: Serve) -> Callable[[], None]:
    """Serves in this process. Returns the function that stops the server."""
    from npdraw_dist.serve.engine import open_engine
    from npdraw_dist.serve.local import serve_in_process
    from npdraw_dist.system.process import local_device

    return serve_in_process(open_engine(folder, local_device(options.use_gpu, "use-gpu"), model), options)


def _on_ray(folder: str, options: Serve) -> Callable[[], None]:
    """Serves on Ray Serve. Returns the function that stops the application."""
    from npdraw_dist.distributed.resources import local_resources
    from npdraw_dist.distributed.start import is_local, start_ray
    from npdraw_dist.serve import deploy
    from npdraw_dist.system.storage import display_path, open_filesystem

    scale = ScaleConfig(num_workers=options.replicas)
    if is_local():
        deploy.require_gpus(options, int(local_resources(scale)["GPU"]))
    start_ray(scale, object_store_mb=128)
    deploy.deploy(folder if "://" in folder else display_path(*open_filesystem(folder)), options)
    return deploy.stop


if __name__ == "__main__":
    run_command(main)
