"""A run from its config: claimed, checked, and its missing stages done."""

from collections.abc import Sequence
from contextlib import nullcontext

from npdraw_dist import __version__
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline import inputs, preflight, run
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.run_log import logged
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.tracking import require_tracker, tracked
from npdraw_dist.training.workers import is_local


def start(
    experiment: Experiment, storage: str, name: str, stages: Sequence[str], list_pictures: bool = True
) -> Store:
    """Does what is missing of `stages` in the run `storage`/`name`, a new one or one to resume.

    list_pictures: print their paths at the end. Raises UserError on a mistake, before anything is computed
    where that can be.
    """
    scale = experiment.scale.placed(cluster=not is_local())
    experiment = experiment.model_copy(update={"scale": scale})
    store = Store.open(storage, name)
    new = not store.has("config.yaml")
    if not new:
        experiment, _ = inputs.claim(experiment, store)
    missing = preflight.unfinished(experiment, store, stages)
    if not missing:
        print(f"all done: {store.shown()} has {', '.join(stages)} for this config")
        return store
    require_tracker(experiment.train.track)
    counts = preflight.check(experiment, store, missing)
    fresh = not store.has()
    with store.lease() as held:
        if new:
            experiment, is_new = inputs.claim(experiment, store)
            fresh = fresh and is_new
        with run.removed_if_refused(store, held) if fresh else nullcontext(), logged(store):
            console.note(f"stages {', '.join(missing)}, npdraw_dist {__version__}")
            if not experiment.scale.here:
                from npdraw_dist.training.launch import start_ray
                from npdraw_dist.training.nodes import require_shared

                start_ray(experiment.scale)
                require_shared(inputs.folders(store, missing))
            preflight.require_workers(experiment, counts, missing)
            with tracked(store.as_asked(experiment), store):
                results = run.run_stages(experiment, store, stages, held)
            run.report(store, results, list_pictures)
    return store
