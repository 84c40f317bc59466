"""The studio: its page, its HTTP API, and here the flags of its command, which need neither torch nor Ray."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, Model

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "NPDRAW_TOKEN"  # other users of the machine can read a command's flags, but not its environment


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
        description=f"token that requests must carry, else all are served; better set {TOKEN}",
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Values of the header Host that are accepted."""
        own = tuple(f"[{host}]" if ":" in host else host for host in LOOPBACK)
        return own if self.host in LOOPBACK else ("*",)
