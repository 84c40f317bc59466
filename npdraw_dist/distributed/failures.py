"""Finds the causes of an error that Ray wrapped in others, and decides whether training restarts after it.

Local training needs this file too, so it does not import Ray and identifies Ray's errors by class name.
"""

from collections.abc import Iterator

from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.system.errors import StorageFailed, UserError
from npdraw_dist.system.lease import LeaseError
from npdraw_dist.training.checkpoint import by_age, named

LONGEST = 500  # largest number of characters in a reason
CAUSES = ("controller_failure", "health_check_failure", "cause")
LOST = ("RayActorError", "OutOfMemoryError")  # Ray: a process ended without an exception of its own
START_FAILED = "WorkerGroupStartupFailedError"  # Ray Train: a worker died before the process group was up
SILENT = "WorkerHealthCheckTimeoutError"  # Ray Train: a worker does not answer
TOO_LARGE = "InsufficientClusterResourcesError"  # a worker fits no type of node
NOT_PLACED = "WorkerGroupStartupTimeoutError"  # the cluster has no room for the workers at present
STORAGE = ("OSError", "ObjectStoreFullError", "OutOfDiskError")  # Ray's object store spills to the disk
Chain = tuple[BaseException, ...]  # an error and its causes, outermost first


def cause_chains(error: BaseException, outer: Chain = ()) -> Iterator[Chain]:
    """Yields the exceptions of each failed worker, from the outermost `error` to the root cause."""
    chain = (*outer, error)
    workers = list(getattr(error, "worker_failures", {}).values())
    single = [_as_text(error), *(getattr(error, name, None) for name in CAUSES), error.__cause__]
    found = [c for c in workers or single if isinstance(c, BaseException) and c not in chain]
    for cause in found if workers else found[:1]:
        yield from cause_chains(cause, chain)
    if not found:
        yield chain


def _as_text(error: BaseException) -> OSError | None:
    """Restores a storage error that ended Ray Train's controller at its start; Ray keeps only its text."""
    if type(error).__name__ != "ActorDiedError":
        return None
    kinds = ("OSError: ", "PermissionError: ", "FileNotFoundError: ")
    lines = [line for line in str(error).splitlines() if line.startswith(kinds)]
    return OSError(lines[0].partition(": ")[2]) if lines else None


def cause_named(error: BaseException, *names: str) -> BaseException | None:
    """The first cause whose class, or a class that it inherits from, has one of these names, or None."""
    causes = (cause for chain in cause_chains(error) for cause in chain)
    return next((c for c in causes if {kind.__name__ for kind in type(c).__mro__} & {*names}), None)


def storage_failed(stage: str, error: BaseException) -> StorageFailed | None:
    """The error to show if a disk or another storage ended the stage; None if something else did."""
    if (cause := cause_named(error, *STORAGE)) is None:
        return None
    return StorageFailed(
        f"stage {stage} stopped because its storage failed ({cause}); what was saved is intact, and the same "
        "command resumes"
    )


def is_of_storage(error: BaseException) -> bool:
    """Whether a storage failure is a cause of the error. If so, the same work can succeed later."""
    return cause_named(error, StorageFailed.__name__, *STORAGE) is not None


def lost(error: BaseException) -> BaseException | None:
    """The cause if a process ended without an exception of its own, died as it started, or went silent."""
    return cause_named(error, *LOST) or cause_named(error, START_FAILED, SILENT)


def is_preemption(error: BaseException) -> bool:
    """Whether workers were lost because the cloud took back their node."""
    chains = cause_chains(error)
    preempted = any(getattr(cause, "preempted", False) is True for chain in chains for cause in chain)
    return preempted or cause_named(error, "PreemptionError") is not None


def reason_of(error: BaseException) -> str:
    """The cause of a failure in one line: a user's mistake, else a lost process, else the innermost error.

    A lost process comes before the innermost error, because its peers fail with errors of their connections.
    """
    mistake = cause_named(error, UserError.__name__)
    cause = mistake or lost(error) or next(cause_chains(error))[-1]
    text = " ".join(str(cause).split())
    if mistake is not None:
        return text
    if type(cause).__name__ == SILENT:
        return "a worker did not answer within scale.timeout_s"
    return f"{type(cause).__name__}: {text}"[:LONGEST]


class Restarts:
    """Counts the failures of the run `name` in `folder` and decides whether its workers restart.

    Restarts by Ray Train are disabled (`FailureConfig`), since it never resets its count of failures.
    Instead, the driver calls `fit` again (`run.run_training`). A run survives scale.max_failures consecutive
    failures without a new checkpoint, or any number if that is -1. The loss of a node that the cloud takes
    back does not count.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, name: str, scale: ScaleConfig) -> None:
        self.filesystem, self.folder, self.name, self.most = filesystem, folder, name, scale.max_failures
        self.failures = 0
        self.newest = -1  # largest step of a checkpoint at any failure so far

    def line_of(self, error: Exception) -> str | None:
        """The reason why the workers restart; None if they still wait for free nodes, which is not a failure.

        Raises UserError, StorageFailed or `error` if they do not restart.
        """
        if cause_named(error, NOT_PLACED) is not None:
            return None
        what = reason_of(error)
        mistake = cause_named(error, UserError.__name__)
        if mistake is not None and not isinstance(mistake, LeaseError):
            raise UserError(str(mistake)) from None  # a restart would fail in the same way
        if cause_named(error, TOO_LARGE) is not None:
            raise UserError(f"stage {self.name} stopped: {what}") from None
        if is_preemption(error):
            return f"workers restart, a node was taken away: {what}"
        # The step is read from the storage, since a worker can die before Ray Train registers its checkpoint.
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
                f"stage {self.name} stopped: {what}, and --scale.max_failures {self.most} is used up; what "
                "was saved is intact, and the same command resumes"
            ) from None
        raise error

    def _newest_step(self) -> int:
        """The step of the newest checkpoint; -1 if there is none or the storage does not answer.

        A damaged checkpoint that is written again gets a new name but keeps its step, so it is not progress.
        """
        try:
            return max((named(path)[0] for path in by_age(self.filesystem, self.folder)), default=-1)
        except OSError:
            return -1
