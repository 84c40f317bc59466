"""The causes of an error that Ray wrapped in others."""

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TypeVar

from ray.exceptions import (
    ActorDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
)
from ray.train import WorkerGroupError

from npdraw_dist.core.errors import StorageFailed, UserError

SILENT = "WorkerHealthCheckTimeoutError"  # of a worker that does not answer
LONGEST = 500  # characters of a reason
CAUSES = ("controller_failure", "health_check_failure", "cause")
# Ray's store spills to the disk.
OF_STORAGE: tuple[type[Exception], ...] = (OSError, ObjectStoreFullError, OutOfDiskError)
Chain = tuple[BaseException, ...]  # outermost first
Cause = TypeVar("Cause", bound=BaseException)


def cause_chains(error: BaseException, outer: Chain = ()) -> Iterator[Chain]:
    """Yields each chain of causes, from `error` to an innermost one: a chain for each worker that failed."""
    chain = (*outer, error)
    workers = list(getattr(error, "worker_failures", {}).values())
    single = [_told(error), *(getattr(error, name, None) for name in CAUSES), error.__cause__]
    found = [c for c in workers or single if isinstance(c, BaseException) and c not in chain]
    for cause in found if workers else found[:1]:
        yield from cause_chains(cause, chain)
    if not found:
        yield chain


def _told(error: BaseException) -> OSError | None:
    """The storage's error at the start of Ray Train's controller, which Ray keeps as text."""
    if not isinstance(error, ActorDiedError):
        return None
    found = re.search(r"^(?:OSError|PermissionError|FileNotFoundError): (.+)$", str(error), re.M)
    return None if found is None else OSError(found[1])


def first_cause(error: BaseException, *kinds: type[Cause]) -> Cause | None:
    """The first cause of one of these kinds; None if there is none."""
    causes = (cause for chain in cause_chains(error) for cause in chain)
    return next((cause for cause in causes if isinstance(cause, kinds)), None)


def cause_named(error: BaseException, name: str) -> BaseException | None:
    """The first cause whose class has this name: some of Ray Train's classes are not public."""
    causes = (cause for chain in cause_chains(error) for cause in chain)
    return next((cause for cause in causes if type(cause).__name__ == name), None)


def storage_failed(stage: str, error: BaseException) -> StorageFailed | None:
    """The line for a stage that an error of a disk or another storage ended; None if it was none of these."""
    if (cause := first_cause(error, *OF_STORAGE)) is None:
        return None
    return StorageFailed(
        f"stage {stage} stopped because its storage failed ({cause}); what was saved is intact, and the same "
        "command resumes"
    )


def is_of_storage(error: BaseException) -> bool:
    """Whether a storage failed, not what ran on it: the same work can succeed later."""
    return first_cause(error, StorageFailed, *OF_STORAGE) is not None


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: lost workers, else the innermost cause at the first that failed."""
    if (lost := lost_workers(error)) is not None:
        return lost
    cause = next(cause_chains(error))[-1]
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(cause, UserError) else f"{type(cause).__name__}: {text}"[:LONGEST]


class Fate(Enum):
    """What can become of a worker that ends without an exception of its own, most telling first."""

    TAKEN = "lost: its node was taken away"
    NODE_LOST = "lost: its node died"
    OUT_OF_MEMORY = "died because memory ran out"
    KILLED = "died (its process was killed or crashed)"
    SILENT = "did not answer in time (scale.timeout_s)"


def fate_of(failure: BaseException) -> tuple[Fate, str] | None:
    """What became of a worker, and its node as ` on node A`, ` (A)` or ""; None if it raised an exception."""
    if cause_named(failure, SILENT) is not None:
        return Fate.SILENT, ""
    died = first_cause(failure, OutOfMemoryError, RayActorError)
    if died is None:
        return None
    text = str(died)
    if isinstance(died, OutOfMemoryError):
        # `... Memory on the node (IP: A, ID: B) was 7.9GB used / 8.0GB limit (0.98) ...`
        found = re.search(r"node \(IP: ([^,)]+).*?\) was (.+? used / .+? limit)", text)
        return Fate.OUT_OF_MEMORY, f" on node {found[1]} ({found[2]})" if found else ""
    if getattr(died, "preempted", False):
        fate = Fate.TAKEN
    else:
        dead = "node has died" in text or "node was terminated" in text
        fate = Fate.NODE_LOST if dead else Fate.KILLED
    found = re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)
    if found is None:
        return fate, ""
    return fate, f" on node {found[1]}" if fate is Fate.KILLED else f" ({found[1]})"


def lost_workers(error: BaseException) -> str | None:
    """What became of the workers that ended without an exception of their own; None if all raised one."""
    group = first_cause(error, WorkerGroupError)
    failures: dict[int, BaseException] = {} if group is None else group.worker_failures
    if not failures:
        fate = fate_of(error)
        return None if fate is None else f"a worker {fate[0].value}{fate[1]}"
    fates = {rank: fate for rank, failure in sorted(failures.items()) if (fate := fate_of(failure))}
    if not fates:
        return None
    worst = min((fate for fate, _ in fates.values()), key=list(Fate).index)
    ranks = [rank for rank, (fate, _) in fates.items() if fate is worst]
    nodes = dict.fromkeys(fates[rank][1] for rank in ranks)
    return f"{name_ranks(ranks)} {worst.value}{','.join(nodes)}"


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, or `ranks 0, 1`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
