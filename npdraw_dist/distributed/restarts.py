"""Decides after a failure whether a Ray Train run starts again.

Ray Train itself restarts no worker (`FailureConfig`), since it never sets its count back: the driver calls
`fit` again (`run.run_training`).
"""

from pyarrow import fs
from ray.train import TrainingFailedError

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import LeaseError
from npdraw_dist.distributed.failures import (
    cause_named,
    first_cause,
    is_preemption,
    lost,
    reason_of,
    storage_failed,
)
from npdraw_dist.training.checkpoint import by_age, named

# Names of Ray Train's errors that are not public.
TOO_LARGE = "InsufficientClusterResourcesError"  # a worker fits no type of node
NOT_PLACED = "WorkerGroupStartupTimeoutError"  # the cluster has no room for the workers now


class Restarts:
    """Judges the failures of the run `name` in `folder`: whether the next start can mend them.

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
