"""A run from its config: claimed and checked, its missing stages done in order, and the table at its end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.table import Column, Table

from npdraw_dist import __version__
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import StorageFailed, UserError
from npdraw_dist.core.lease import Lease
from npdraw_dist.core.made_by import version_of
from npdraw_dist.data.rows import REJECTS
from npdraw_dist.data.shard_writer import DONE
from npdraw_dist.pipeline import bank, inputs, parse, preflight, prior, sample, vae
from npdraw_dist.pipeline.progress import console, logged
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, Store
from npdraw_dist.pipeline.tracking import require_tracker, tracked
from npdraw_dist.training.workers import is_local

Manifest = dict[str, Any]


# Stage -> its module: `run`, `describe` (the line of its numbers), and PICTURES in the run folder, if any.
STAGES: dict[str, Any] = {module.STAGE: module for module in (bank, parse, prior, vae, sample)}


def start(
    experiment: Experiment,
    storage: str,
    name: str,
    stages: Sequence[str],
    list_pictures: bool = True,
    track: str | None = None,
) -> Store:
    """Does what is missing of `stages` in the run `storage`/`name`, a new one or one to resume.

    list_pictures: print their paths at the end. track: a service that the run is sent to. Raises UserError on
    a mistake, before anything is computed where that can be.
    """
    store = Store.open(storage, name)
    with ExitStack() as stack:
        experiment, missing, held = prepare_run(experiment, store, stages, stack, track)
        if held is None:
            print(f"all done: {store.shown()} has {', '.join(stages)} for this config")
            return store
        report(store, run_stages(experiment, store, missing, held), list_pictures)
    return store


def prepare_run(
    experiment: Experiment, store: Store, stages: Sequence[str], stack: ExitStack, track: str | None = None
) -> tuple[Experiment, Sequence[str], Lease | None]:
    """All checks of a run, cheap ones first; then its lease, log and tracker, until `stack` ends.

    Returns its config, the stages to do, and the lease, None if nothing is to do. Nothing is written and no
    Ray is started before the run can begin. Raises UserError if it cannot.
    """
    scale = experiment.scale.placed(cluster=not is_local())
    experiment = experiment.model_copy(update={"scale": scale})
    require_format(store, experiment.stage_names)
    new, fresh = not store.has(CONFIG), not store.has()
    if not new:
        experiment, _ = inputs.claim(experiment, store)
    missing = preflight.unfinished(experiment, store, stages)
    if not missing:
        return experiment, missing, None
    require_tracker(track)
    counts = preflight.check(experiment, store, missing)
    held = stack.enter_context(store.lease())
    if new:
        experiment, is_new = inputs.claim(experiment, store)
        if fresh and is_new:
            stack.enter_context(removed_if_refused(store, held))
    stack.enter_context(logged(store))
    console.note(f"stages {', '.join(missing)}, npdraw_dist {__version__}")
    if not experiment.scale.here:
        from npdraw_dist.training.cluster import require_shared
        from npdraw_dist.training.launch import start_ray

        start_ray(experiment.scale)
        require_shared(inputs.folders(store, missing))
    preflight.require_workers(experiment, counts, missing)
    stack.enter_context(tracked(store.as_asked(experiment), store, track))
    return experiment, missing, held


@contextmanager
def removed_if_refused(store: Store, held: Lease) -> Iterator[None]:
    """Removes a new run's folder if the block ends with a user's mistake and nothing of worth is in it.

    A finished stage, parsed shards (the same command goes on there) and the list of bad rows are of worth.
    held: the lease on the run. Raises LeaseLost if another driver took the run over.
    """
    try:
        yield
    except StorageFailed:
        raise
    except UserError:
        held.check()  # else the folder is another driver's
        worth = ("manifest.json", DONE, REJECTS)
        if not any(store.has(folder, name) for folder in FOLDERS.values() for name in worth):
            store.remove()
        raise


def require_format(store: Store, stages: Sequence[str]) -> None:
    """Raises OtherFormat if another version made what this one cannot read; says which others resumed."""
    folders = [FOLDERS[stage] for stage in stages if stage in FOLDERS]
    made = [folder for folder in folders if store.has(folder, "manifest.json")]
    found = {version_of(store.read_json(folder, "manifest.json"), store.shown(folder)) for folder in made}
    if others := sorted(version for version in found if version not in (None, __version__)):
        console.print(f"{store.shown()}: made by {', '.join(others)}, resumed by {__version__}")


def run_stages(
    experiment: Experiment, store: Store, stages: Sequence[str], held: Lease
) -> dict[str, Manifest]:
    """Runs the stages in order; returns the manifest of each.

    held: the lease on the run. Until a stage has finished, the data may be mended after a user's mistake.
    Raises LeaseLost if another driver took the run over, StorageFailed if the storage failed.
    """
    manifests: dict[str, Manifest] = {}
    try:
        for name in (name for name in STAGES if name in stages):
            held.check()
            manifests[name] = STAGES[name].run(experiment, store)
        return manifests
    except UserError:
        held.check()
        if not store.has(FOLDERS[experiment.stage_names[0]], "manifest.json"):
            inputs.forget(store)
        raise
    except Exception as error:
        from npdraw_dist.training.failures import storage_failed  # it imports Ray

        if (failed := storage_failed(name, error)) is None:
            raise
        raise failed from None


def report(store: Store, manifests: Mapping[str, Manifest], list_pictures: bool = True) -> None:
    """Prints the table (stage, seconds, images/s, numbers), then the paths of the pictures if asked."""
    numbers = [Column(name, justify="right") for name in ("seconds", "images/s")]
    table = Table("stage", *numbers, "numbers")
    for name, manifest in manifests.items():
        seconds, rate = (
            manifest.get(key, manifest.get(f"{name}/{key}", 0.0)) for key in ("seconds", "images_per_s")
        )
        table.add_row(name, f"{seconds:.1f}", f"{rate:,.0f}", STAGES[name].describe(manifest))
    printed.print(table)
    for picture in (picture for stage in STAGES.values() for picture in getattr(stage, "PICTURES", ())):
        if list_pictures and store.has(picture):
            printed.print(store.shown(picture))
