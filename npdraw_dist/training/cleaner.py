"""Ray Train's cleaner, which works without Ray's dashboard. It imports no torch: its process stays small."""

from typing import Any

import ray
from ray._private import state as ray_state
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.util.state.exception import RayStateApiException


def _is_alive(actor_id: str, timeout: float) -> bool:
    """Whether the controller lives, in place of Ray Train's function, which needs Ray's dashboard.

    It fails for good on a machine of two Rays. Raises RayStateApiException, after which Ray Train asks again.
    """
    try:
        return bool(ray_state.actors(actor_id).get("State") != "DEAD")
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise RayStateApiException(str(error)) from error


class Cleaner(PlacementGroupCleaner):
    """Ray Train's actor that frees what a run holds whose controller is killed, or dies with its node."""

    def __init__(self, **settings: Any) -> None:
        placement_group_cleaner.is_actor_alive = _is_alive
        super().__init__(**settings)


class CleanerCallback(PlacementGroupCleanerCallback):
    """Ray Train's callback, in the controller's process, that starts `Cleaner`."""

    def after_controller_start(self, train_run_context: Any) -> None:
        placement_group_callback.PlacementGroupCleaner = Cleaner  # type: ignore[misc, assignment]
        super().after_controller_start(train_run_context)
