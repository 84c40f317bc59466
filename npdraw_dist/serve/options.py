"""How the editor is served, in this process or on Ray."""

from dataclasses import dataclass

BATCH = 32  # drawings decoded at once
REQUEST_S = 60  # time limit of a request
SHUTDOWN_S = 5  # time that a replica has to finish its requests


@dataclass(frozen=True)
class ServeOptions:
    """use_gpu: one GPU a replica; None uses them if there are enough. ongoing, queued: requests a replica
    works on at once, and requests that may wait before others get 503. token: what requests must bear. rate:
    requests a second that an address may make; None is no limit."""

    host: str
    port: int
    replicas: int = 1
    use_gpu: bool | None = None
    ongoing: int = 32
    queued: int = 64
    token: str | None = None
    rate: float | None = None
