"""Runs the project's commands as a user does: each in its own process, with its own local Ray."""

import os
import subprocess
import sys

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import COMPUTE


def run(module: str, *flags: str) -> None:
    """Runs `python -m module` without the variables of COMPUTE, which the command sets itself.

    Raises UserError with the last line of a command that failed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in {"RAY_ADDRESS", *COMPUTE}}
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"python -m {module} {' '.join(flags)} failed: {last}")
