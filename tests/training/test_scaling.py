"""An elastic run changes its number of workers at checkpoints only, and not after its last one."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    ResourceRequestPriority,
    _AutoscalingCoordinatorActor,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2.api.config import ScalingConfig

from npdraw_dist.training.controller import CheckpointScalingPolicy, Trainer
from npdraw_dist.training.workers import Workers

IMAGES = 100_000
CONFIG = ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray's coordinator of resources on 2 CPUs, called without actors; `now` is the time of both."""
    world = SimpleNamespace(now=0.0)
    nodes = [{"Alive": True, "NodeID": "a", "Resources": {"CPU": 2.0}}]
    world.coordinator = _AutoscalingCoordinatorActor(lambda: world.now, lambda *_, **__: None, lambda: nodes)
    policy = "ray.train.v2._internal.execution.scaling_policy"
    monkeypatch.setattr(f"{policy}.elastic.time_monotonic", lambda: world.now)

    def reserved(self: Any) -> Any:
        return world.coordinator.get_reserved_resources("run")

    def request(self: Any) -> None:
        world.coordinator.request_resources(
            "run", [{"CPU": 1}] * 2, expire_after_s=180, priority=ResourceRequestPriority.HIGH
        )

    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", reserved)
    monkeypatch.setattr(ElasticScalingPolicy, "_maybe_send_resource_request", request)
    return world


def status(images_seen: int | None = None, images_per_s: float = 1000.0, checkpoint: Any = True) -> Any:
    """A poll of two workers; with `images_seen`, of rank 0's report."""
    metrics = {} if images_seen is None else {"images_seen": images_seen, "images_per_s": images_per_s}
    report = None if images_seen is None else _TrainingReport(checkpoint, metrics, False)
    return SimpleNamespace(worker_statuses={0: SimpleNamespace(training_report=report)})


def group(workers: int) -> Any:
    return SimpleNamespace(num_workers=workers, start_time=0.0)


def another_run(world: SimpleNamespace, seconds: float) -> None:
    """Another run claims a CPU for that time: one that was killed, or another trial."""
    world.coordinator.request_resources(
        "other", [{"CPU": 1}], expire_after_s=seconds, priority=ResourceRequestPriority.HIGH
    )


def decisions(policy: Any, world: SimpleNamespace) -> dict[int, int]:
    """A stage of 100 s on one worker: second -> number of workers, of the decisions to restart.

    Polled each second; a checkpoint each 25 s, the last one at the end.
    """
    found = {}
    for second in range(1, 101):
        world.now = float(second)
        world.coordinator._tick()
        seen = second * 1000 if second % 25 == 0 else None
        decision = policy.make_decision_for_running_worker_group(group(1), status(seen))
        if not isinstance(decision, NoopDecision):
            found[second] = decision.num_workers
    return found


def test_ray_train_restarts_a_stage_that_is_nearly_done(cluster: SimpleNamespace) -> None:
    """The cause of the restarts: once a minute, whatever is left, between two checkpoints.

    A run that was killed keeps its claim for 3 minutes, so the next one starts with what is left over.
    """
    another_run(cluster, 50)
    policy = ElasticScalingPolicy(CONFIG)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 1  # type: ignore[attr-defined]
    assert decisions(policy, cluster) == {60: 2}


@pytest.mark.parametrize(("claimed_s", "expected"), [(50, {75: 2}), (90, {})])
def test_a_stage_grows_right_after_a_checkpoint_but_not_after_its_last_one(
    cluster: SimpleNamespace, claimed_s: float, expected: dict[int, int]
) -> None:
    another_run(cluster, claimed_s)
    policy = CheckpointScalingPolicy(CONFIG, IMAGES)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 1  # type: ignore[attr-defined]
    assert decisions(policy, cluster) == expected


def test_a_checkpoint_between_two_validations_is_no_occasion(cluster: SimpleNamespace) -> None:
    policy = CheckpointScalingPolicy(CONFIG, 10 * IMAGES)
    policy.make_decision_for_non_running_worker_group()
    cluster.now = 100.0
    for report in (_TrainingReport(True, {}, False), _TrainingReport(None, {"images_per_s": 1.0}, False)):
        poll = SimpleNamespace(worker_statuses={0: SimpleNamespace(training_report=report)})
        assert isinstance(policy.make_decision_for_running_worker_group(group(1), poll), NoopDecision)
    assert isinstance(policy.make_decision_for_running_worker_group(group(1), status(20_000)), ResizeDecision)


def test_between_checkpoints_the_run_keeps_its_claim(cluster: SimpleNamespace) -> None:
    policy = CheckpointScalingPolicy(CONFIG, IMAGES)
    policy.make_decision_for_non_running_worker_group()
    for second in range(0, 1000, 20):
        cluster.now = float(second)
        policy.make_decision_for_running_worker_group(group(2), status())
    cluster.coordinator._tick()
    assert cluster.coordinator.get_reserved_resources("run") == {"a": {"CPU": 2}}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 1 / 3])
def test_shares_of_a_gpu_add_up_in_rays_coordinator(cluster: SimpleNamespace, share: float) -> None:
    """Of five times 0.2 it would reserve four, and of one GPU the policy would count four too."""
    count = round(1 / share)
    each = Workers(1, count, 1, share).resources
    nodes = [{"Alive": True, "NodeID": "a", "Resources": {"CPU": 16.0, "GPU": 1.0}}]
    cluster.coordinator._get_cluster_nodes = lambda: nodes
    cluster.coordinator.request_resources(
        "run", [each] * count, expire_after_s=180, priority=ResourceRequestPriority.HIGH
    )
    cluster.coordinator._tick()
    config = ScalingConfig(num_workers=(1, count), use_gpu=True, resources_per_worker=each)
    policy = CheckpointScalingPolicy(config, IMAGES)
    assert policy._count_possible_workers(cluster.coordinator.get_reserved_resources("run")) == count


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "elastic"), [((1, 2), True), (2, False)])
def test_the_trainer_takes_the_policy_for_a_range(
    workers: Any, elastic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Ray Train's own `fit`, up to the start of its controller."""
    taken: dict[str, Any] = {}

    def run(self: Any, **named: Any) -> Any:
        taken.update(named)
        return SimpleNamespace(error=None)

    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", run)
    config = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1})
    Trainer(lambda: None, images=IMAGES, scaling_config=config).fit()
    policy = taken["scaling_policy"]
    assert isinstance(policy, CheckpointScalingPolicy) == elastic
    assert policy.scaling_config.num_workers == workers
