"""When an elastic run changes its number of workers: at a checkpoint, and only if that saves time.

Ray Train compares the number of workers with the cluster once a minute and restarts all of them at once if
they differ. It does not know how much training is left, so it restarted a stage in its last seconds, or after
its last step.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.config import ScalingConfig

from npdraw_dist.training.cleanup import CleanerCallback

RESTART_S = 60.0  # a restart takes 20 to 40 s; below twice that it is not worth the risk


class CheckpointScalingPolicy(ElasticScalingPolicy):
    """Ray Train's elastic policy, asked when a checkpoint has just come. images: the budget of the stage."""

    def __init__(self, scaling_config: ScalingConfig, images: int) -> None:
        super().__init__(scaling_config)
        self.images = images

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        report = worker_group_status.worker_statuses[0].training_report
        if report is None or report.checkpoint is None or "images_per_s" not in report.metrics:
            self._maybe_send_resource_request()  # type: ignore[no-untyped-call]  # keeps its claim alive
            return NoopDecision()
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            left_s = (self.images - report.metrics["images_seen"]) / report.metrics["images_per_s"]
            if not is_worth_it(left_s, worker_group_state.num_workers, decision.num_workers):
                return NoopDecision()
        return decision


def is_worth_it(left_s: float, workers: int, others: int) -> bool:
    """Whether to restart `workers` as `others` (more, or fewer) if training takes `left_s` more seconds."""
    saved_s = left_s * (1 - workers / others) if others > workers else left_s
    return saved_s > RESTART_S


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer, with this policy if the number of workers is a range, and with our `CleanerCallback`.

    images: the budget.
    """

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
