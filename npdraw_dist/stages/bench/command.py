"""The command `npdraw_dist.train` in a process of its own, as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from npdraw_dist.config.load import dump
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.dist.environment import ALLOCATOR


def start(experiment: Experiment, folder: Path, name: str, stages: Sequence[str]) -> subprocess.Popen[str]:
    """Starts `stages` of the run `folder`/`name`, in a local Ray of its own."""
    config = folder / f"{name}.yaml"
    config.write_text(dump(experiment))
    flags = ["--config", str(config), "--storage", str(folder), "--name", name, "--stages", ",".join(stages)]
    own = {"RAY_ADDRESS", *ALLOCATOR}  # the command finds the rest itself
    return subprocess.Popen(
        [sys.executable, "-m", "npdraw_dist.train", *flags],
        env={key: value for key, value in os.environ.items() if key not in own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for the end; raises UserError with the last line of a command that failed."""
    _, errors = process.communicate()
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"{' '.join(map(str, process.args))} failed: {last[0]}")  # type: ignore[arg-type,union-attr]
