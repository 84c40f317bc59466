"""The studio's server on a free port of this process."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npdraw_dist.serve import Serve
from npdraw_dist.serve.engine import open_engine
from npdraw_dist.serve.local import serve_here


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of the model, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = serve_here(open_engine(str(folder)), Serve(port=port))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop()
