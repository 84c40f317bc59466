"""The causes of an error that Ray wrapped in others, and whether a training starts again after it.

Local training needs it too, so it does not import Ray, and knows Ray's errors by their names.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import StorageFailed, UserError
from npdraw_dist.core.lease import LeaseError
from npdraw_dist.training.checkpoint import by_age, named

LONGEST = 500  # characters of a reason
CAUSES = ("controller_failure", "health_check_failure", "cause")
LOST = ("RayActorError", "OutOfMemoryError")  # of Ray: a process ended without an exception of its own
START_FAILED = "WorkerGroupStartupFailedError"  # of Ray Train: one died before the process group was up
SILENT = "WorkerHealthCheckTimeoutError"  # of Ray Train: a worker does not answer
TOO_LARGE = "InsufficientClusterResourcesError"  # a worker fits no type of node
NOT_PLACED = "WorkerGroupStartupTimeoutError"  # the cluster has no room for the workers now
STORE_FULL = ("ObjectStoreFullError", "OutOfDiskError")  # Ray's store spills to the disk
Chain = tuple[BaseException, ...]  # outermost first
Cause = TypeVar("Cause", bound=BaseException)


def cause_chains(error: BaseException, outer: Chain = ()) -> Iterator[Chain]:
    """Yields each chain of causes, from `error` to an innermost one: a chain for each worker that failed."""
    chain = (*outer, error)
    workers = list(getattr(error, "worker_failures", {}).values())
    single = [_as_text(error), *(getattr(error, name, None) for name in CAUSES), error.__cause__]
    found = [c for c in workers or single if isinstance(c, BaseException) and c not in chain]
    for cause in found if workers else found[:1]:
        yield from cause_chains(cause, chain)
    if not found:
        yield chain


def _as_text(error: BaseException) -> OSError | None:
    """The storage's error at the start of Ray Train's controller, which Ray keeps as text."""
    if type(error).__name__ != "ActorDiedError":
        return None
    kinds = ("OSError: ", "PermissionError: ", "FileNotFoundError: ")
    lines = [line for line in str(error).splitlines() if line.startswith(kinds)]
    return OSError(lines[0].partition(": ")[2]) if lines else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    return (cause for chain in cause_chains(error) for cause in chain)


def first_cause(error: BaseException, *kinds: type[Cause]) -> Cause | None:
    """The first cause of one of these kinds; None if there is none."""
    return next((cause for cause in _causes(error) if isinstance(cause, kinds)), None)


def cause_named(error: BaseException, *names: str) -> BaseException | None:
    """The first cause of a class that bears one of these names, or inherits from one that does."""
    return next((c for c in _causes(error) if {kind.__name__ for kind in type(c).__mro__} & {*names}), None)


def storage_failed(stage: str, error: BaseException) -> StorageFailed | None:
    """The line for a stage that an error of a disk or another storage ended; None if it was none of these."""
    if (cause := first_cause(error, OSError) or cause_named(error, *STORE_FULL)) is None:
        return None
    return StorageFailed(
        f"stage {stage} stopped because its storage failed ({cause}); what was saved is intact, and the same "
        "command resumes"
    )


def is_of_storage(error: BaseException) -> bool:
    """Whether a storage failed, not what ran on it: the same work can succeed later."""
    return first_cause(error, StorageFailed, OSError) is not None or (
        cause_named(error, *STORE_FULL) is not None
    )


def lost(error: BaseException) -> BaseException | None:
    """The cause if a process ended without an exception of its own: killed, silent, or with its node."""
    return cause_named(error, *LOST, START_FAILED, SILENT)


def is_preemption(error: BaseException) -> bool:
    """Whether workers were lost because the cloud took back their node."""
    preempted = any(getattr(cause, "preempted", False) is True for cause in _causes(error))
    return preempted or cause_named(error, "PreemptionError") is not None


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: the innermost cause at the ranks that failed first.

    Ranks that were lost are named, not those that missed them.
    """
    if (mistake := first_cause(error, UserError)) is not None:
        return " ".join(str(mistake).split())
    if (info := getattr(error, "preemption_info", None)) is not None:
        return f"{_ranks(info.preempted_ranks)} lost: the node was taken away"
    failures: dict[int, BaseException] = getattr(
        cause_named(error, "WorkerGroupError"), "worker_failures", {}
    )
    died = {rank: failure for rank, failure in failures.items() if cause_named(failure, *LOST)}
    silent = {rank: failure for rank, failure in failures.items() if cause_named(failure, SILENT)}
    lines: dict[str, list[int]] = {}
    for rank, failure in sorted((died or silent or failures).items()):
        lines.setdefault(_cause_line(failure), []).append(rank)
    if not lines:
        return _cause_line(error)
    line, ranks = next(iter(lines.items()))
    return f"{_ranks(ranks)} {'died' if died else 'failed'} ({line})"


def _cause_line(error: BaseException) -> str:
    """The innermost cause in one line; of a lost process all that Ray states, such as its node."""
    gone = cause_named(error, *LOST)
    if gone is None and cause_named(error, SILENT) is not None:
        return "no answer within scale.timeout_s"
    cause = gone or next(cause_chains(error))[-1]
    words = [" ".join(line.split()) for line in str(cause).splitlines() if line.strip()]
    text = f"{type(cause).__name__}: {' '.join(words) if gone else next(iter(words), '')}"[:LONGEST]
    if cause_named(error, START_FAILED) is None:
        return text
    return "a worker died while it started" + (f" ({text})" if gone else "")


def _ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, or `ranks 0, 1`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class Restarts:
    """Judges the failures of the run `name` in `folder`: whether the next start can mend them.

    Ray Train itself restarts no worker (`FailureConfig`), since it never sets its count back: the driver
    calls `fit` again (`run.run_training`). scale.max_failures in a row without a new checkpoint are survived,
    or any number if it is -1; nodes that the cloud takes back do not count.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, name: str, scale: ScaleConfig) -> None:
        self.filesystem, self.folder, self.name, self.most = filesystem, folder, name, scale.max_failures
        self.failures = 0
        self.newest = -1  # step of the newest checkpoint at a failure

    def line_of(self, error: Exception) -> str | None:
        """Why the workers start again; None if they go on waiting for a place, which is no failure.

        Raises UserError, StorageFailed or the error itself if they do not start again.
        """
        if cause_named(error, NOT_PLACED) is not None:
            return None
        mistake = first_cause(error, UserError)
        if mistake is not None and not isinstance(mistake, LeaseError):
            raise UserError(str(mistake)) from None  # no restart mends it
        if (too_large := cause_named(error, TOO_LARGE)) is not None:
            raise UserError(f"stage {self.name} stopped: {' '.join(str(too_large).split())}") from None
        what = reason_of(error)
        if is_preemption(error):
            return f"workers restart, a node was taken away: {what}"
        # The storage is asked: a worker can die before Ray Train hears of its checkpoint.
        newest = self._newest_step()
        self.failures = 1 if newest > self.newest else self.failures + 1
        self.newest = max(newest, self.newest)
        if self.most == -1:
            return f"workers restart: {what}"
        if self.failures <= self.most:
            times = f"failure {self.failures} of at most {self.most} without a new checkpoint"
            return f"workers restart: {what} ({times})"
        if (failed := storage_failed(self.name, error)) is not None:
            raise failed from None
        if lost(error) is not None:
            raise UserError(
                f"stage {self.name} stopped: {what}, and --scale.max_failures {self.most} are used up; what "
                "was saved is intact, and the same command resumes"
            ) from None
        raise error

    def _newest_step(self) -> int:
        """That of the newest checkpoint; -1 if there is none, or the storage does not answer.

        One that was made again since it was damaged has another name, and is no progress.
        """
        try:
            return max((named(path)[0] for path in by_age(self.filesystem, self.folder)), default=-1)
        except OSError:
            return -1
