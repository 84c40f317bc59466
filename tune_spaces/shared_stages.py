"""Stages that trials share: each is built once, in <run>/cache/<stage>-<fingerprint>/.

A trial that lacks a stage takes the lease on `building` in that folder and builds it, while the others wait;
the stage's manifest says that it is there. So a finished stage outlives the sweep's process, and a build that
was killed resumes. The processes of a stopped trial end a while after it: so the process that writes a stage
holds a lease on the folder itself, here or in `distributed/run.py`, and the next builder waits for its end.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.core.lease import Lease, LeaseHeld
from npdraw_dist.core.made_by import fingerprint
from npdraw_dist.pipeline.inputs import READ_DATA
from npdraw_dist.pipeline.store import FOLDERS, INPUTS, Store, fingerprint_of, finished

SHARED = ("bank", "parse", "prior")  # those of them that the model's kind has
POLL_S = 0.5


@dataclass(frozen=True)
class SharedStage:
    """A stage of `experiment` that trials of the sweep `run` share."""

    run: Store
    experiment: Experiment
    stage: str

    @property
    def name(self) -> str:
        name = f"{self.stage}-{fingerprint_of(self.experiment, self.stage)}"
        if INPUTS in self.run.elsewhere:  # all trials have the same data
            return name
        return f"{name}-{fingerprint({'path': self.experiment.data.path})}"

    @property
    def store(self) -> Store:
        """The store that the stage is built in; the stages before it are in stores of their own."""
        root = self.run.path("cache", self.name)
        before = SHARED[: SHARED.index(self.stage)]
        return Store(self.run.filesystem, root, _folders(self.run, self.experiment, before))

    def is_built(self) -> bool:
        return finished(self.store, self.experiment, self.stage) is not None

    def ensure(self, build: Callable[[Store], object]) -> None:
        """Returns once the stage is there: built by `build(store)`, or by another trial."""
        while not self.is_built():
            with ExitStack() as held:
                try:
                    held.enter_context(Lease(self.run.filesystem, f"{self.store.root}/building", self.name))
                except LeaseHeld:
                    time.sleep(POLL_S)
                    continue
                if not self.is_built():
                    build(self.store)


def build_alone(
    build: Callable[[Experiment, Store], object],
    experiment: Experiment,
    store: Store,
    folders: Sequence[Landmarks] = (),
) -> None:
    """Builds in the root of `store` once every process that built there before has ended.

    Raises UserError if one is still there after scale.timeout_s, or if this node does not see the `folders`.
    """
    from npdraw_dist.distributed.nodes import require_here  # imports Ray

    require_here(folders)
    what, wait_s = f"the build in {store.shown()}", float(experiment.scale.timeout_s)
    with Lease(store.filesystem, store.root, what, wait_s=wait_s):
        build(experiment, store)


def shared_stages(run: Store, experiment: Experiment) -> list[SharedStage]:
    """The stages that trials of this config share, in order."""
    return [SharedStage(run, experiment, stage) for stage in experiment.stage_names if stage in SHARED]


def cached(run: Store, stage: str) -> list[Store]:
    """The stores of all that trials have built, or begun to build, of a stage."""
    selector = fs.FileSelector(run.path("cache"), allow_not_found=True)
    found = sorted(info.path for info in run.filesystem.get_file_info(selector))
    return [Store(run.filesystem, path) for path in found if path.rpartition("/")[2].startswith(f"{stage}-")]


def needs_data(run: Store, trials: Sequence[Experiment]) -> bool:
    """Whether a stage that reads the data is missing for some of `trials`; True if these are not known."""
    stages = [stage for trial in trials for stage in shared_stages(run, trial) if stage.stage in READ_DATA]
    return not stages or not all(stage.is_built() for stage in stages)


def trial_store(run: Store, experiment: Experiment, trial: str) -> Store:
    """The run folder of a trial; its shared stages are in the cache."""
    return Store(run.filesystem, run.path("trials", trial), _folders(run, experiment, SHARED))


def _folders(run: Store, experiment: Experiment, stages: Sequence[str]) -> dict[str, str]:
    """Folder of a run -> root of the store that holds it; also what the sweep holds for all its trials."""
    shared = [each for each in shared_stages(run, experiment) if each.stage in stages]
    return run.elsewhere | {FOLDERS[each.stage]: run.path("cache", each.name) for each in shared}
