"""When a Ray Train run starts again after a failure, and what workers wait for that are not placed.

Ray Train itself restarts no worker (`FailureConfig`), since it never sets its count back: the driver calls
`fit` again (`launch.run_training`).
"""

import math
import time

from pyarrow import fs
from ray.train import PreemptionError, TrainingFailedError, WorkerGroupError

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import LeaseError
from npdraw_dist.training.checkpoint import by_age, named
from npdraw_dist.training.cluster import free_now, living_nodes
from npdraw_dist.training.failures import (
    Fate,
    cause_named,
    fate_of,
    first_cause,
    lost_workers,
    name_ranks,
    reason_of,
    storage_failed,
)
from npdraw_dist.training.workers import Workers, listed, room

FIRST_S, AGAIN_S = 25.0, 60.0  # until it is said what workers wait for, and said again
# Names of Ray Train's errors that are not public.
TOO_LARGE = "InsufficientClusterResourcesError"  # a worker fits no type of node
NOT_PLACED = "WorkerGroupStartupTimeoutError"  # the cluster has no room for the workers now
START_FAILED = "WorkerGroupStartupFailedError"  # a worker died before the process group was up


class Restarts:
    """Judges the failures of the run `name` in `folder`: which the next start mends, and which end it.

    Only failures in a row without a new checkpoint count, scale.max_failures of them, or any number if it is
    -1; nodes that the cloud takes back do not.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, name: str, scale: ScaleConfig) -> None:
        self.filesystem, self.folder, self.name, self.most = filesystem, folder, name, scale.max_failures
        self.failures = 0
        self.newest = -1  # step of the newest checkpoint at a failure

    def line_of(self, error: TrainingFailedError) -> str | None:
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
        what = what_happened(error)
        if is_preemption(error):
            return f"workers restart: {what}"
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
        if lost_workers(error) is not None or cause_named(error, START_FAILED) is not None:
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


def is_preemption(error: BaseException) -> bool:
    """Whether workers were lost because the cloud took back their node."""
    fates = [fate_of(failure) for failure in getattr(error, "worker_failures", {}).values()]
    return isinstance(error, PreemptionError) or Fate.TAKEN in [fate[0] for fate in fates if fate]


def what_happened(error: BaseException) -> str:
    """The reason of a restart in one line. A rank that died is named, not those that missed it."""
    if isinstance(error, PreemptionError):
        return f"the node of {name_ranks(error.preemption_info.preempted_ranks)} was taken away"
    if cause_named(error, START_FAILED) is not None and lost_workers(error) is None:
        return "a worker died while it started"
    if not isinstance(error, WorkerGroupError) or lost_workers(error) is not None:
        return reason_of(error)
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(error.worker_failures.items()):
        ranks.setdefault(reason_of(failure), []).append(rank)
    reason, of = next(iter(ranks.items()))
    return f"{name_ranks(of)} failed ({reason})"


class Waiting:
    """Tells what `workers` wait for that the cluster has not placed: after FIRST_S, then each AGAIN_S."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._before: int | None = None  # how often they had started when they were asked for
        self._next = math.inf  # when to tell

    def begin(self) -> None:
        """The workers are asked for."""
        self._before, self._next = None, time.monotonic() + FIRST_S

    def line(self, starts: int) -> str | None:
        """What to say now, if anything. starts: how often workers have started."""
        if self._before is None:
            self._before = starts
        if starts > self._before:
            self._next = math.inf
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + AGAIN_S
        return f"waits for {self.workers}: {self._missing()}"

    def _missing(self) -> str:
        nodes, free, each = living_nodes(), free_now(), (self.workers.cpus, self.workers.gpus)
        all_fit, fit_now = room(nodes, *each), room([free], *each)
        if all_fit < self.workers.least:
            why = f"the cluster has room for {all_fit}"
        elif fit_now < self.workers.least:
            why = "others hold what they need"
        else:
            why = "Ray has not placed them yet"
        return f"{why}; nodes: {listed(nodes)}; free: {free}"
