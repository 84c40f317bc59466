"""The project's commands in processes of their own, as a user starts them, with a local Ray of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from npdraw_dist.core.errors import UserError

STOP_S = 30  # a server has this long to end


def start(module: str, *flags: str) -> subprocess.Popen[str]:
    """Starts `python -m module`. A server asks for no token."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "NPDRAW_TOKEN")}
    command, pipe = [sys.executable, "-m", module, *flags], subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(module: str, *flags: str) -> None:
    """Raises UserError with the last line of a command that failed."""
    process = start(module, *flags)
    _, errors = process.communicate()
    if process.returncode:
        raise _failed(module, flags, errors)


@contextmanager
def serving(*flags: str) -> Iterator[None]:
    """The studio's server while the block runs. Raises UserError if it does not start."""
    process = start("npdraw_dist.serve", *flags)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():  # it prints its address when it is ready
            raise _failed("npdraw_dist.serve", flags, process.communicate()[1])
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _failed(module: str, flags: Sequence[str], errors: str) -> UserError:
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return UserError(f"python -m {module} {' '.join(flags)} failed: {last}")
