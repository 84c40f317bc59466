"""Why the workers of a run restart, said in a line; and when they no longer do.

Ray Train counts failures over the whole life of a run. Here only those in a row without a new checkpoint
count, since a run of weeks loses many machines. Both callbacks run in Ray Train's controller.
"""

from typing import Any

from pyarrow import fs
from ray.train import PreemptionError, UserCallback, WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import LeaseError
from npdraw_dist.training.checkpoint import by_age
from npdraw_dist.training.events import Events
from npdraw_dist.training.failures import Fate, fate_of, first_cause, lost_workers, name_ranks, reason_of
from npdraw_dist.training.metrics_log import Record
from npdraw_dist.training.waiting import were_not_placed


class TooManyFailures(Exception):
    """Ends a run. cause: the last failure."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message, cause)
        self.message, self.cause = message, cause

    def __str__(self) -> str:
        return self.message


class Restarts(ControllerCallback):
    """Says why the workers of the run in `folder` restart, and ends the run after too many failures.

    most: failures in a row that a run survives without a new checkpoint; -1: no limit. Nodes that the cloud
    takes back do not count. mailbox: the actor (`launch.Display`) that passes lines to the driver.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, most: int, mailbox: Any) -> None:
        self.filesystem, self.folder, self.most, self.mailbox = filesystem, folder, most, mailbox
        self.failures = 0
        self.newest: str | None = None  # checkpoint at the last failure
        self.workers: int | None = None  # of the last start

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if current_state is previous_state:
            return  # it waits for resources
        match current_state:
            case PreemptingState():
                ranks = name_ranks(current_state.preemption_info.preempted_ranks)
                if not isinstance(previous_state, PreemptingState):
                    self._say(f"the node of {ranks} is about to be taken away; a checkpoint is saved")
            case RestartingState():
                error = current_state.training_failed_error
                self._failed(error, counts=not isinstance(previous_state, PreemptingState))
            case ReschedulingState(training_failed_error=error) if not were_not_placed(error):
                # Else `Waiting` says why.
                self._say(f"workers did not start ({reason_of(error)}); again")
            case SchedulingState(scaling_decision=ResizeDecision() as decision):
                self._scheduled(decision.num_workers, previous_state)

    def _failed(self, error: BaseException, counts: bool) -> None:
        """Says what failed; raises TooManyFailures if it was one too many."""
        what = what_happened(error)
        if not counts or is_preemption(error):
            self._say(f"workers restart: {what}")
            return
        mistake = first_cause(error, UserError)
        if mistake is not None and not isinstance(mistake, LeaseError):
            raise TooManyFailures(str(mistake), error)  # no restart mends it
        # The storage is asked: a worker can die before Ray Train's controller hears of its checkpoint.
        newest = self._newest_checkpoint()
        self.failures = self.failures + 1 if newest == self.newest else 1
        self.newest = newest
        if self.most == -1:
            self._say(f"workers restart: {what}")
        elif self.failures <= self.most:
            times = f"failure {self.failures} of at most {self.most} without a new checkpoint"
            self._say(f"workers restart: {what} ({times})")
        else:
            line = f"stops: {what} (failure {self.failures} without a new checkpoint; "
            line += f"scale.max_failures is {self.most})"
            self._say(line)
            raise TooManyFailures(line, error)

    def _scheduled(self, workers: int, previous_state: Any) -> None:
        before, self.workers = self.workers, workers
        if before is None or before == workers:
            return
        change = f"their number changes from {before} to {workers}"
        self._say(f"workers restart: {change}" if isinstance(previous_state, ResizingState) else change)

    def _newest_checkpoint(self) -> str | None:
        """Its path; the one at the last failure if the storage does not answer."""
        try:
            return next(iter(by_age(self.filesystem, self.folder)), None)
        except OSError:
            return self.newest

    def _say(self, line: str) -> None:
        self.mailbox.say.remote(line)


class EventsCallback(UserCallback):  # type: ignore[misc]
    """Writes TensorBoard events as reports come. The end of the stage adds what it missed."""

    def __init__(self, filesystem: fs.FileSystem, folder: str) -> None:
        self.events = Events(filesystem, folder)

    def after_report(self, run_context: Any, metrics: list[Record], checkpoint: Any) -> None:
        if "step" in metrics[0]:  # else a checkpoint between two validations
            self.events.add(metrics[0])


def is_preemption(error: BaseException) -> bool:
    """Whether workers were lost because the cloud took back their node."""
    fates = [fate_of(failure) for failure in getattr(error, "worker_failures", {}).values()]
    return isinstance(error, PreemptionError) or Fate.TAKEN in [fate[0] for fate in fates if fate]


def what_happened(error: BaseException) -> str:
    """The reason of a restart in one line. A rank that died is named, not those that missed it."""
    if isinstance(error, PreemptionError):
        return f"the node of {name_ranks(error.preemption_info.preempted_ranks)} was taken away"
    if not isinstance(error, WorkerGroupError) or lost_workers(error) is not None:
        return reason_of(error)
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(error.worker_failures.items()):
        ranks.setdefault(reason_of(failure), []).append(rank)
    reason, of = next(iter(ranks.items()))
    return f"{name_ranks(of)} failed ({reason})"
