"""The project's commands in processes of their own, as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from npdraw_dist.config.load import dump
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import COMPUTE

STOP_S = 30  # a server has this long to end


def start(module: str, flags: Sequence[str]) -> subprocess.Popen[str]:
    """Starts `python -m module`, with a local Ray of its own. The command sets the variables of COMPUTE."""
    removed = {"RAY_ADDRESS", *COMPUTE}
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        env={key: value for key, value in os.environ.items() if key not in removed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_training(experiment: Experiment, folder: Path, name: str, stage: str) -> subprocess.Popen[str]:
    """Starts a stage of the run <folder>/<name>."""
    config = folder / f"{name}.yaml"
    config.write_text(dump(experiment))
    flags = ["--config", str(config), "--storage", str(folder), "--name", name, "--stages", stage]
    return start("npdraw_dist.train", flags)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for the end. Raises UserError with the last line of a command that failed."""
    _, errors = process.communicate()
    if process.returncode:
        raise _failed(process, errors)


@contextmanager
def serving(model_folder: str, host: str, port: int) -> Iterator[None]:
    """The studio's server while the block runs. Raises UserError if it does not start."""
    process = start("npdraw_dist.serve", ["--model", model_folder, "--host", host, "--port", str(port)])
    assert process.stdout is not None
    try:
        if not process.stdout.readline():  # it prints its address when it is ready
            raise _failed(process, process.communicate()[1])
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _failed(process: subprocess.Popen[str], errors: str) -> UserError:
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return UserError(f"{' '.join(map(str, process.args))} failed: {last}")  # type: ignore[arg-type]
