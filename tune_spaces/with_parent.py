"""A Python module as a command that ends when the process that started it does, even if that was killed.

`python -m tune_spaces.with_parent PARENT MODULE ARGUMENT ...`: PARENT is the id of the starting process.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h: the next argument is the signal at the parent's end


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` as a child of this process."""
    return [sys.executable, "-m", __spec__.name, str(os.getpid()), module, *arguments]


def main(parent: int, arguments: Sequence[str]) -> None:
    """Becomes `python -m` with `arguments`. On Linux it gets SIGTERM when the thread of `parent` that started
    it ends; elsewhere nothing is sent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the line above
            sys.exit(128 + signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", *arguments])  # which keeps that signal


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
