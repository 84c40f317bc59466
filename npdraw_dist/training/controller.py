"""Callbacks in Ray Train's controller: restarts, waits, changes of size, and the end of a run that is killed.

They take private names of Ray Train, for which `pyproject.toml` bounds Ray.
"""

import time
from typing import Any

from pyarrow import fs
from ray.train import PreemptionError, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
)
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import LeaseError
from npdraw_dist.training.checkpoint import by_age
from npdraw_dist.training.cleaner import CleanerCallback
from npdraw_dist.training.cluster import free_nodes, living_nodes
from npdraw_dist.training.failures import Fate, fate_of, first_cause, lost_workers, name_ranks, reason_of
from npdraw_dist.training.workers import Workers, listed, room

FIRST_S = 25.0  # below RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, after which Ray Train asks `Waiting`
AGAIN_S = 60.0
BEFORE_START = (InitializingState, RestartingState, ReschedulingState, ResizingState, SchedulingState)


class TooManyFailures(Exception):
    """Ends a run. cause: the last failure."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message, cause)
        self.message, self.cause = message, cause

    def __str__(self) -> str:
        return self.message


class Restarts(ControllerCallback):
    """Says why the workers of the run in `folder` restart, and ends the run after too many failures.

    Only failures in a row without a new checkpoint count, `most` of them, or any number if it is -1; nodes
    that the cloud takes back do not. mailbox: passes lines to the driver.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, most: int, mailbox: Any) -> None:
        self.filesystem, self.folder, self.most, self.mailbox = filesystem, folder, most, mailbox
        self.failures = 0
        self.newest: str | None = None  # checkpoint at the last failure
        self.workers: int | None = None  # how many the last start had

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


class Waiting(ControllerCallback):
    """Says what `workers` wait for if the cluster does not place them, at once and each minute.

    can_grow: nodes may join; if not, what can never fit ends the run. mailbox: passes lines to the driver.
    """

    def __init__(self, workers: Workers, can_grow: bool, mailbox: Any) -> None:
        self.workers, self.can_grow, self.mailbox = workers, can_grow, mailbox
        self._since: float | None = None
        self._said_at = float("-inf")

    def after_controller_start(self, train_run_context: Any) -> None:
        self._since = time.monotonic()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, BEFORE_START):
            self._since, self._said_at = None, float("-inf")
            return
        now = time.monotonic()
        failed = isinstance(current_state, ReschedulingState) and not were_not_placed(
            current_state.training_failed_error
        )  # after they were placed
        if self._since is None or (failed and current_state is not previous_state):
            self._since = now
        if isinstance(current_state, SchedulingState) or now - self._since < FIRST_S:
            return
        if now - self._said_at >= AGAIN_S:
            self._said_at = now
            self.mailbox.say.remote(f"waits for {self.workers}: {self._missing()}")

    def _missing(self) -> str:
        """Why the workers are not placed. Raises UserError if they can never be."""
        nodes, needed, each = living_nodes(), self.workers.least, (self.workers.cpus, self.workers.gpus)
        all_fit = room(nodes, *each)
        if all_fit < needed and not self.can_grow:
            raise UserError(
                f"{self.workers} cannot start: there is room for {all_fit}; nodes: {listed(nodes)} "
                "(lower --scale.num_workers or --scale.cpus_per_worker)"
            )
        free = free_nodes()
        fit_now = room(free.values(), *each)
        if all_fit < needed:
            why = f"the cluster has room for {all_fit}"
        elif fit_now < needed:
            why = f"others hold what they need, and leave room for {fit_now}"
        else:
            why = "there is room, which Ray has not given them yet"
        return f"{why}; free: {listed(nodes, free)}"


def were_not_placed(error: BaseException) -> bool:
    """Whether workers did not start since the cluster did not place them in time."""
    return first_cause(error, WorkerGroupStartupTimeoutError) is not None


class CheckpointScalingPolicy(ElasticScalingPolicy):
    """Ray Train's elastic policy, asked only when a checkpoint has just come, but the one of all `images`."""

    def __init__(self, scaling_config: ScalingConfig, images: int) -> None:
        super().__init__(scaling_config)
        self.images = images

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        report = worker_group_status.worker_statuses[0].training_report
        seen = None if report is None or report.checkpoint is None else report.metrics.get("images_seen")
        if seen is None or seen >= self.images:
            self._maybe_send_resource_request()  # type: ignore[no-untyped-call]  # keeps its claim alive
            return NoopDecision()
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer of `images` images, with `CheckpointScalingPolicy` if elastic, and `CleanerCallback`."""

    def __init__(self, *arguments: Any, images: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._images = images

    def _create_default_callbacks(self) -> list[Any]:
        found = super()._create_default_callbacks()
        return [CleanerCallback() if type(one) is PlacementGroupCleanerCallback else one for one in found]

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        if isinstance(named.get("scaling_policy"), ElasticScalingPolicy):
            named["scaling_policy"] = CheckpointScalingPolicy(self.scaling_config, self._images)
        return super()._initialize_and_run_controller(**named)
