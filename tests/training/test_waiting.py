"""Workers that the cluster does not place: what they lack is said at once, then once a minute."""

import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import state as ray_state
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from npdraw_dist.training.controller import Waiting
from npdraw_dist.training.environment import RAY
from npdraw_dist.training.workers import Workers
from tests.training.test_cluster import nodes
from tests.training.test_controller import mailbox_of

START_S = float(RAY["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])
INITIAL, RUNNING = state.InitializingState(), state.RunningState()
NOT_PLACED = state.ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
SCHEDULING = state.SchedulingState(ResizeDecision(2, {}))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock, and two nodes with a GPU each, of which all is free."""
    found = nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})
    for number, node in enumerate(found):
        node["NodeID"] = number
    made = SimpleNamespace(now=100.0, nodes=found)
    free = dict(enumerate(node["Resources"] for node in found))
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: free)
    return made


def retried(callback: Waiting, world: SimpleNamespace, seconds: float) -> None:
    """Ray Train asks for the workers, and asks anew after START_S, for so long."""
    end = world.now + seconds
    before: Any = INITIAL
    while world.now < end:
        callback.after_controller_state_update(before, SCHEDULING)
        world.now += START_S
        callback.after_controller_state_update(SCHEDULING, NOT_PLACED)
        before = NOT_PLACED


def start(most: int = 2) -> tuple[Waiting, list[str]]:
    lines: list[str] = []
    callback = Waiting(Workers(2, most, 4, 1), True, mailbox_of(lines))
    callback.after_controller_start(SimpleNamespace())
    return callback, lines


def test_it_is_said_once_a_minute(world: SimpleNamespace) -> None:
    callback, lines = start()
    retried(callback, world, 10 * 60)
    assert 9 <= len(lines) <= 10
    assert "there is room, which Ray has not given them yet" in lines[0]


def test_only_workers_that_are_not_placed_wait(world: SimpleNamespace) -> None:
    """Once they are placed, Ray Train's state stays SCHEDULING until they run, or fail at their start."""
    callback, lines = start()
    failed = state.ReschedulingState(ControllerError(WorkerGroupStartupFailedError("died")))
    restarting = state.RestartingState(ControllerError(ValueError()))
    states: list[Any] = [INITIAL, SCHEDULING, failed, SCHEDULING, RUNNING, restarting, SCHEDULING]
    for before, after in pairwise(states):
        callback.after_controller_state_update(before, after)
        world.now += 300
    assert lines == []
    retried(callback, world, START_S)
    assert len(lines) == 1


def test_an_elastic_run_waits_in_one_state(world: SimpleNamespace) -> None:
    """Ray Train asks its policy over and over; nothing is scheduled. A node went away."""
    world.nodes[1]["Alive"] = False
    callback, lines = start(most=4)
    for _ in range(90):
        world.now += 1
        callback.after_controller_state_update(INITIAL, INITIAL)
    assert len(lines) == 2
    assert lines[0].startswith("waits for 2 to 4 workers of 4 CPUs and a GPU: the cluster has room for 1")
