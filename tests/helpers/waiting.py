"""Waiting for what another process does, with an end."""

import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float = 60, pause_s: float = 0.1) -> None:
    """Returns as soon as `true()` is; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        time.sleep(pause_s)
