"""Patches Ray Train's private interface. A version of Ray with other private names is left unchanged."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.util.state.exception import RayStateApiException


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer, which also frees the CPUs of a run with a killed controller if Ray has no dashboard."""

    def _create_default_callbacks(self) -> list[Any]:
        return replace_cleaner(super()._create_default_callbacks())


def replace_cleaner(callbacks: list[Any]) -> list[Any]:
    """Replaces the cleaner among Ray Train's callbacks by one that needs no dashboard.

    The cleaner (Ray's pull request 58515) frees the CPUs of a run whose controller is killed while its job
    continues, such as a stopped trial. Ray's own cleaner asks the dashboard whether the controller is alive.
    Without a dashboard it frees nothing, so a stopped trial keeps its CPUs until the sweep ends. The classes
    are local so that Ray pickles them by value: the cleaner's process imports neither this package nor torch.
    """
    try:
        from ray._private import state
        from ray.train.v2._internal.callbacks import placement_group_callback
        from ray.train.v2._internal.execution.controller import placement_group_cleaner

        of_ray = placement_group_callback.PlacementGroupCleanerCallback
        cleaner = placement_group_cleaner.PlacementGroupCleaner
    except (ImportError, AttributeError):
        return callbacks

    def is_alive(actor_id: str, timeout: float) -> bool:
        try:
            return bool(state.actors(actor_id).get("State") != "DEAD")
        except (ray.exceptions.RayError, RuntimeError, OSError) as error:
            raise RayStateApiException(str(error)) from error  # Ray Train asks again

    class Cleaner(cleaner):  # type: ignore[misc, valid-type]
        def __init__(self, **settings: Any) -> None:
            placement_group_cleaner.is_actor_alive = is_alive
            super().__init__(**settings)

    class CleanerCallback(of_ray):  # type: ignore[misc, valid-type]
        def after_controller_start(self, train_run_context: Any) -> None:
            placement_group_callback.PlacementGroupCleaner = Cleaner  # type: ignore[assignment, misc]
            super().after_controller_start(train_run_context)

    return [CleanerCallback() if type(one) is of_ray else one for one in callbacks]
