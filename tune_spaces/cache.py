"""Stages that trials share: built once each, in <run>/cache/<stage>-<fingerprint>/.

Whoever wants a stage that is not there takes its lease and builds it; the others wait. What is there is
told by the stage's manifest, so a finished stage outlives the sweep's process, and one that was killed
half-way is taken up where it stopped.
"""

import time
from collections.abc import Callable
from typing import Any

import ray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.store import FOLDERS, Store, finished

SHARED = ("bank", "parse", "prior")  # of those that the model's kind has
POLL_S = 0.5
GRACE_S = 5.0  # processes of a stopped trial are gone after that


class Leases:
    """Who builds what. An actor of the sweep's own process, so that it ends with the sweep."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self.held: dict[str, str] = {}
        self.free_from: dict[str, float] = {}

    def acquire(self, what: str, trial: str) -> bool:
        """True where `trial` may build `what` now; then it has to release it."""
        if time.monotonic() < self.free_from.get(what, 0.0):
            return False
        return self.held.setdefault(what, trial) == trial

    def release(self, what: str, trial: str) -> None:
        if self.held.get(what) == trial:
            del self.held[what]

    def release_all(self, trial: str) -> None:
        """Frees what a trial held when it was stopped or died, once its processes have had time to end."""
        for what in [what for what, holder in self.held.items() if holder == trial]:
            del self.held[what]
            self.free_from[what] = time.monotonic() + self.grace_s


def shared_stages(experiment: Experiment) -> tuple[str, ...]:
    """The stages that trials of this config share, in order."""
    return tuple(stage for stage in experiment.stage_names if stage in SHARED)


def shared_root(run: Store, experiment: Experiment, stage: str) -> str:
    """The root of the store that holds a shared stage's folder."""
    return run.path("cache", f"{stage}-{of_stage(experiment, stage)}")


def shared_store(run: Store, experiment: Experiment, stage: str) -> Store:
    """Where a shared stage is built, with the stages before it."""
    stages = shared_stages(experiment)
    before = stages[: stages.index(stage)]
    return Store(run.filesystem, shared_root(run, experiment, stage), _elsewhere(run, experiment, before))


def trial_store(run: Store, experiment: Experiment, trial: str) -> Store:
    """The run folder of a trial; its shared stages lie in the cache."""
    return Store(
        run.filesystem, run.path("trials", trial), _elsewhere(run, experiment, shared_stages(experiment))
    )


def _elsewhere(run: Store, experiment: Experiment, stages: tuple[str, ...]) -> dict[str, str]:
    return {FOLDERS[stage]: shared_root(run, experiment, stage) for stage in stages}


def ensure(
    run: Store,
    experiment: Experiment,
    stage: str,
    trial: str,
    leases: Any,
    build: Callable[[Store], object],
) -> None:
    """Returns once the shared stage is there: built by `build(store)` here, or by another trial.

    leases: the handle of a `Leases` actor.
    """
    store = shared_store(run, experiment, stage)
    made_from = of_stage(experiment, stage)
    what = f"{stage}-{made_from}"
    while finished(store, FOLDERS[stage], made_from) is None:
        if not ray.get(leases.acquire.remote(what, trial)):
            time.sleep(POLL_S)
            continue
        try:
            if finished(store, FOLDERS[stage], made_from) is None:
                build(store)
        finally:
            ray.get(leases.release.remote(what, trial))
