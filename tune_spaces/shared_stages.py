"""Builds the stages that trials share. Each is built once, in <run>/cache/<stage>-<fingerprint>/.

A trial that lacks a stage takes the lease on `building` in that folder and builds the stage, while other
trials wait. A stage is done when it has a manifest. A second start uses stages that are done, and resumes a
build that was killed. The processes of a stopped trial may run on for a while. The process that writes a
stage therefore also holds a lease on the folder itself (`build_alone` or `distributed/run.py`), and the next
builder waits for this lease.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pyarrow import fs

from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data.shards import open_source
from npdraw_dist.pipeline.data import follow
from npdraw_dist.pipeline.store import FOLDERS, Store, fingerprint_of, finished
from npdraw_dist.system.landmarks import Landmarks
from npdraw_dist.system.lease import Lease, LeaseHeld
from npdraw_dist.system.made_by import fingerprint

SHARED = ("data", "bank", "parse", "prior")  # a kind of model may lack some of these
POLL_S = 0.5


@dataclass(frozen=True)
class SharedStage:
    """The stage `stage` of `experiment`, which the trials of a sweep share."""

    cache: "Cache"
    experiment: Experiment
    stage: str

    @property
    def name(self) -> str:
        name = f"{self.stage}-{fingerprint_of(self.experiment, self.stage)}"
        if not self.cache.varies_data:
            return name
        return f"{name}-{fingerprint({'path': self.experiment.data.path})}"

    @property
    def store(self) -> Store:
        """The folder of the stage, as a run folder whose earlier stages are in their own cache folders."""
        before = SHARED[: SHARED.index(self.stage)]
        return self.cache.store(self.experiment, ("cache", self.name), before)

    def is_built(self) -> bool:
        return finished(self.store, self.experiment, self.stage) is not None

    def ensure(self, build: Callable[[Store], object]) -> None:
        """Calls `build(store)` if the stage is not built, or waits while another trial builds the stage."""
        building = f"{self.store.root}/building"
        while not self.is_built():
            with ExitStack() as stack:
                try:
                    stack.enter_context(Lease(self.store.filesystem, building, self.name))
                except LeaseHeld:
                    time.sleep(POLL_S)
                    continue
                if not self.is_built():
                    build(self.store)


@dataclass(frozen=True)
class Cache:
    """The stages that the trials of the sweep `run` share.

    varies_data: whether the source or the path of the data varies. If so, each path has its own stages.
    """

    run: Store
    varies_data: bool = False

    def stages(self, experiment: Experiment) -> list[SharedStage]:
        """The shared stages of a config, in the order in which they run."""
        return [SharedStage(self, experiment, stage) for stage in experiment.stage_names if stage in SHARED]

    def trial_store(self, experiment: Experiment, trial: str) -> Store:
        """The run folder of a trial, whose shared stages are in the cache."""
        return self.store(experiment, ("trials", trial), SHARED)

    def store(self, experiment: Experiment, folder: Sequence[str], stages: Sequence[str]) -> Store:
        """The folder `folder` of the sweep, as a run folder whose `stages` are in the cache."""
        shared = [each for each in self.stages(experiment) if each.stage in stages]
        elsewhere = {FOLDERS[each.stage]: self.run.path("cache", each.name) for each in shared}
        return Store(self.run.filesystem, self.run.path(*folder), elsewhere)

    def needs_data(self, trials: Sequence[Experiment]) -> bool:
        """Whether one of `trials` still has to read the data; True if the trials are not known."""
        stages = [stage for trial in trials for stage in self.stages(trial) if stage.stage == "data"]
        return not stages or not all(stage.is_built() for stage in stages)

    def require_same_data(self, base: Experiment) -> None:
        """Raises UserError if the data are missing or differ from those that earlier trials read.

        The same data at a new path are accepted.
        """
        source, run = open_source(base.data, base.seed), self.run
        folders = fs.FileSelector(run.path("cache"), allow_not_found=True)
        for path in sorted(info.path for info in run.filesystem.get_file_info(folders)):
            store = Store(run.filesystem, run.root, {"data": path})
            if store.has("data", MANIFEST):
                follow(store.read_json("data", MANIFEST), source, base, store)


def build_alone(
    build: Callable[[Experiment, Store], object],
    experiment: Experiment,
    store: Store,
    folders: Sequence[Landmarks] = (),
) -> None:
    """Calls `build(experiment, store)` after every earlier builder of the same folder has ended.

    Raises UserError if a builder still runs after scale.timeout_s, or if this node does not see `folders`.
    """
    from npdraw_dist.distributed.nodes import require_on_this_node  # imports Ray

    require_on_this_node(folders)
    what, wait_s = f"the build in {store.shown()}", float(experiment.scale.timeout_s)
    with Lease(store.filesystem, store.root, what, wait_s=wait_s):
        build(experiment, store)
