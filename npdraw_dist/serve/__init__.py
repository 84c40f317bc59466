"""The studio, a web page and an HTTP API for one model. This file defines its flags without torch or Ray."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, Model

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "NPDRAW_TOKEN"  # other users of the machine can read a command's flags, but not its environment


class Serve(Command):
    """Serves the studio, where you watch a model draw and edit drawings. Ctrl-C stops it."""

    examples: ClassVar[tuple[str, ...]] = ("", "--model runs/digits --port 8080")

    model: Model = None
    port: int = Field(8000, ge=1, le=65535, description="port of the page and the API")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; 0.0.0.0 serves everyone on the network, see --token",
    )
    replicas: PositiveInt = Field(
        1, description="copies of the model that share the requests; two or more need Ray Serve"
    )
    use_gpu: bool | None = Field(
        None, description="use a GPU for each replica; if not given, GPUs are used if there are enough"
    )

    token: str | None = Field(
        None,
        min_length=1,
        description=f"token that requests must carry; the variable {TOKEN} sets it unseen by other users",
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The accepted values of the HTTP header Host; "*" accepts any."""
        own = tuple(f"[{host}]" if ":" in host else host for host in LOOPBACK)
        return own if self.host in LOOPBACK else ("*",)
