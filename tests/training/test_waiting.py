"""Workers that the cluster does not place: what they lack is said at once, then once a minute.

The states are made here; `tests/training/test_controller.py` makes Ray Train's controller make them.
"""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import state as ray_state
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from npdraw_dist.core.errors import UserError
from npdraw_dist.training.controller import FIRST_S, Waiting
from npdraw_dist.training.environment import RAY
from npdraw_dist.training.workers import Workers
from tests.training.test_cluster import nodes
from tests.training.test_restarts import Lines

WORKERS = Workers(2, 2, 4, 1)
START_S = float(RAY["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])
NOT_PLACED = state.ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
SCHEDULING = state.SchedulingState(ResizeDecision(2, {}))


class World:
    """A clock, two nodes with a GPU each, and what is free on them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.nodes = nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})
        for number, node in enumerate(self.nodes):
            node["NodeID"] = f"node{number}"
        self.free: dict[str, dict[str, float]] = {node["NodeID"]: node["Resources"] for node in self.nodes}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(ray, "nodes", lambda: made.nodes)
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: made.free)
    return made


def retried(callback: Waiting, world: World, seconds: float) -> None:
    """Ray Train asks for the workers, and asks anew after START_S, for so long."""
    end = world.now + seconds
    before: Any = state.InitializingState()
    while world.now < end:
        callback.after_controller_state_update(before, SCHEDULING)
        world.now += START_S
        callback.after_controller_state_update(SCHEDULING, NOT_PLACED)
        before = NOT_PLACED


def start(workers: Workers = WORKERS, can_grow: bool = True) -> tuple[Waiting, list[str]]:
    lines = Lines()
    callback = Waiting(workers, can_grow, lines)
    callback.after_controller_start(SimpleNamespace())
    return callback, lines.lines


def test_it_is_said_within_a_minute() -> None:
    assert FIRST_S <= START_S < 60


def test_what_others_hold_is_said(world: World) -> None:
    world.free["node1"] = {"CPU": 8.0, "GPU": 0.0}
    world.free["node0"] = {"CPU": 3.0, "GPU": 1.0}
    callback, lines = start()
    retried(callback, world, START_S)
    assert lines == [
        "waits for 2 workers of 4 CPUs and a GPU: others hold what they need, and leave room for 0; free: "
        "10.0.0.1: 3 of 8 CPUs, 1 of 1 GPU; 10.0.0.2: 8 of 8 CPUs, 0 of 1 GPU"
    ]


def test_nodes_that_went_away_are_said(world: World) -> None:
    world.nodes[1]["Alive"] = False
    callback, lines = start()
    retried(callback, world, START_S)
    assert lines == [
        "waits for 2 workers of 4 CPUs and a GPU: the cluster has room for 1; free: "
        "10.0.0.1: 8 of 8 CPUs, 1 of 1 GPU"
    ]


def test_it_is_said_once_a_minute(world: World) -> None:
    callback, lines = start()
    retried(callback, world, 10 * 60)
    assert 9 <= len(lines) <= 10
    assert "there is room, which Ray has not given them yet" in lines[0]


def test_a_start_that_takes_its_time_is_no_wait(world: World) -> None:
    """Once they are placed, Ray Train's state stays SCHEDULING until they run."""
    callback, lines = start()
    callback.after_controller_state_update(state.InitializingState(), SCHEDULING)
    world.now += 300
    callback.after_controller_state_update(SCHEDULING, state.RunningState())
    world.now += 300
    restarting = state.RestartingState(ControllerError(ValueError()))
    callback.after_controller_state_update(state.RunningState(), restarting)
    callback.after_controller_state_update(restarting, SCHEDULING)
    assert lines == []


def test_an_elastic_run_waits_in_one_state(world: World) -> None:
    """Ray Train asks its policy over and over; nothing is scheduled."""
    world.nodes[1]["Alive"] = False
    callback, lines = start(Workers(2, 4, 4, 1))
    initial = state.InitializingState()
    for _ in range(90):
        world.now += 1
        callback.after_controller_state_update(initial, initial)
    assert len(lines) == 2
    assert lines[0].startswith("waits for 2 to 4 workers of 4 CPUs and a GPU: the cluster has room for 1")


def test_a_worker_that_failed_at_its_start_had_been_placed(world: World) -> None:
    callback, lines = start()
    failed = state.ReschedulingState(ControllerError(WorkerGroupStartupFailedError("died")))
    callback.after_controller_state_update(state.InitializingState(), SCHEDULING)
    world.now += 100
    callback.after_controller_state_update(SCHEDULING, failed)
    assert lines == []
    retried(callback, world, START_S)
    assert len(lines) == 1


def test_what_can_never_fit_ends_the_run(world: World) -> None:
    world.nodes[1]["Alive"] = False
    callback, lines = start(can_grow=False)
    with pytest.raises(UserError, match="2 workers of 4 CPUs and a GPU cannot start: there is room for 1; n"):
        retried(callback, world, START_S)
    assert lines == []


def test_what_others_hold_for_now_does_not(world: World) -> None:
    world.free = {}
    callback, lines = start(can_grow=False)
    retried(callback, world, START_S)
    assert "leave room for 0; free: 10.0.0.1: 0 of 8 CPUs" in lines[0]
