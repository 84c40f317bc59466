"""The causes of an error that Ray wrapped in others."""

import re
from collections.abc import Iterator
from typing import TypeVar

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

from npdraw_dist.core.errors import UserError

LONGEST = 500  # characters of a reason
CAUSES = ("controller_failure", "health_check_failure", "cause")
# Ray's store spills to the disk.
OF_STORAGE: tuple[type[Exception], ...] = (OSError, ObjectStoreFullError, OutOfDiskError)
Chain = tuple[BaseException, ...]  # outermost first
Cause = TypeVar("Cause", bound=BaseException)


def cause_chains(error: BaseException, outer: Chain = ()) -> Iterator[Chain]:
    """Yields each chain of causes, from `error` to an innermost one: a chain for each worker that failed.

    Ray Train keeps causes in `worker_failures`, `controller_failure` or `health_check_failure`, Ray in
    `cause`, Python in `__cause__`.
    """
    chain = (*outer, error)
    workers = list(getattr(error, "worker_failures", {}).values())
    single = [*(getattr(error, name, None) for name in CAUSES), error.__cause__]
    found = [c for c in workers or single if isinstance(c, BaseException) and c not in chain]
    for cause in found if workers else found[:1]:
        yield from cause_chains(cause, chain)
    if not found:
        yield chain


def first_cause(error: BaseException, *kinds: type[Cause]) -> Cause | None:
    """The first cause of one of these kinds; None if there is none."""
    causes = (cause for chain in cause_chains(error) for cause in chain)
    return next((cause for cause in causes if isinstance(cause, kinds)), None)


def storage_error(error: BaseException) -> BaseException | None:
    """The cause that is an error of a disk or another storage, such as a full one; None if there is none."""
    return first_cause(error, *OF_STORAGE)


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: a lost worker, else the innermost cause at the first that failed."""
    if (lost := lost_worker(error)) is not None:
        return lost
    cause = next(cause_chains(error))[-1]
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(cause, UserError) else f"{type(cause).__name__}: {text}"[:LONGEST]


def lost_worker(error: BaseException) -> str | None:
    """What became of a worker that ended without an exception of its own, in a line; None if there is none.

    The other workers fail as a consequence, each with an exception that tells nothing.
    """
    causes = [chain[-1] for chain in cause_chains(error)]
    for kind, text_of in ((OutOfMemoryError, _killed_for_memory), (RayActorError, _died)):
        for cause in causes:
            if isinstance(cause, kind):
                return text_of(str(cause))
    silent = any(isinstance(cause, WorkerHealthCheckTimeoutError) for cause in causes)
    return "a worker did not answer for --scale.timeout_s" if silent else None


def _killed_for_memory(text: str) -> str:
    """From Ray's message: `... Memory on the node (IP: A, ID: B) was 7.9GB used / 8.0GB limit (0.98) ...`."""
    found = re.search(r"node \(IP: ([^,)]+).*?\) was (.+? used / .+? limit)", text)
    where = f" on node {found[1]} ({found[2]})" if found else ""
    return f"a worker was killed because memory ran out{where}: give it less to hold, or the node more memory"


def _died(text: str) -> str:
    """From Ray's message, which names the node in a line `ip: A`, and says if the node died."""
    found = re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)
    what = "its node died" if "node has died" in text else "killed or crashed"
    return f"a worker died{f' on node {found[1]}' if found else ''} ({what})"
