"""An object in a process of its own, so that its memory is its own.

`python -m npdraw_dist.bench.worker_process FD` is the process: it makes the object that it receives on the
connection FD, and calls its methods as asked.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from npdraw_dist.core.errors import UserError


class WorkerProcess:
    """`make(*arguments)` in a new process that ends with the `with` block; `call` calls its methods.

    without: environment variables of this process that the new one does not get.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, without: Collection[str] = ()) -> None:
        self.name = f"{make.__name__}{tuple(a for a in arguments if isinstance(a, str | int))}"
        self._connection, theirs = multiprocessing.Pipe()
        environment = {name: value for name, value in os.environ.items() if name not in without}
        # Not a fork: it would begin with all of this process's memory.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(theirs.fileno())],
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        # Not `Connection.send`: torch would make it send tensors as shared memory.
        self._connection.send_bytes(pickle.dumps((make, arguments)))

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()  # the process ends when it sees that
        self._process.wait()

    def wait(self) -> None:
        """Returns once the object is made: nothing is measured while one still loads or compiles."""
        self.call("")  # no method

    def call(self, method: str, *arguments: Any) -> Any:
        """What its method returns or raises. Raises UserError if the process was killed."""
        try:
            self._connection.send_bytes(pickle.dumps((method, arguments)))
            result, error = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise UserError(
                f"the process of {self.name} was killed, perhaps for lack of memory (--against none measures "
                "without the dense reference, --train.micro_batch 16 with less memory)"
            ) from None
        if error is not None:
            raise error
        return result


def _serve(connection: Connection) -> None:
    """Makes the object, then answers calls until the connection is closed. An answer is (result, error)."""
    make, arguments = pickle.loads(connection.recv_bytes())
    made = make(*arguments)
    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        result, error = None, None
        try:
            result = getattr(made, method)(*arguments) if method else None
        except Exception as raised:
            error = raised
        connection.send_bytes(pickle.dumps((result, error)))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
