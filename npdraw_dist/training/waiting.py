"""What the workers of a run wait for if the cluster does not place them, said at once and each minute.

Others may hold the resources, or nodes went away after the plan was made. Ray Train then tries again without
end, and says so only in its log. This callback runs in Ray Train's controller.
"""

import time
from typing import Any

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
)

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.placement import listed, room
from npdraw_dist.training.failures import first_cause
from npdraw_dist.training.resources import free_nodes, living_nodes
from npdraw_dist.training.workers import Workers

FIRST_S = 25.0  # below RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, after which Ray Train asks this callback
AGAIN_S = 60.0
BEFORE_START = (InitializingState, RestartingState, ReschedulingState, ResizingState, SchedulingState)


def were_not_placed(error: BaseException) -> bool:
    """Whether workers did not start since the cluster did not place them in time."""
    return first_cause(error, WorkerGroupStartupTimeoutError) is not None


def _failed_at_start(state: object) -> bool:
    """Whether workers were placed and then failed."""
    return isinstance(state, ReschedulingState) and not were_not_placed(state.training_failed_error)


class Waiting(ControllerCallback):
    """Says what `workers` wait for. can_grow: nodes may join; if not, what can never fit ends the run.

    mailbox: the actor (`launch.Display`) that passes lines to the driver.
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
        if self._since is None or (current_state is not previous_state and _failed_at_start(current_state)):
            self._since = now
        if isinstance(current_state, SchedulingState) or now - self._since < FIRST_S:
            return
        if now - self._said_at >= AGAIN_S:
            self._said_at = now
            self.mailbox.say.remote(f"waits for {self.workers}: {self._missing()}")

    def _missing(self) -> str:
        """Why the workers are not placed. Raises UserError if they can never be."""
        nodes, needed = living_nodes(), self.workers.least
        all_fit = room(nodes, self.workers.share)
        if all_fit < needed and not self.can_grow:
            raise UserError(
                f"{self.workers} cannot start: there is room for {all_fit}; nodes: {listed(nodes)} "
                "(lower --scale.num_workers or --scale.cpus_per_worker)"
            )
        free = free_nodes()
        fit_now = room(free.values(), self.workers.share)
        if all_fit < needed:
            why = f"the cluster has room for {all_fit}"
        elif fit_now < needed:
            why = f"others hold what they need, and leave room for {fit_now}"
        else:
            why = "there is room, which Ray has not given them yet"
        return f"{why}; free: {listed(nodes, free)}"
