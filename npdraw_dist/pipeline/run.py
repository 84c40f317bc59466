"""A run from its config: claimed and checked, its missing stages done in order, and the table at its end.

All checks lie here. What can be known before anything is computed is told within seconds, not after a stage
of hours: stages, images and workers. Symbols: K parts, L places.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

from rich.table import Column, Table

from npdraw_dist import __version__
from npdraw_dist.config.prepared import MANIFEST, read_prepared
from npdraw_dist.config.registry import SOURCES
from npdraw_dist.config.schema import DataConfig, Experiment
from npdraw_dist.core.errors import StorageFailed, UserError
from npdraw_dist.core.lease import Lease
from npdraw_dist.core.made_by import version_of
from npdraw_dist.core.process import require_extra
from npdraw_dist.core.storage import list_files, open_filesystem, require_apart
from npdraw_dist.data.rows import REJECTS
from npdraw_dist.data.shard_folder import DONE, MARKER
from npdraw_dist.distributed.failures import storage_failed
from npdraw_dist.distributed.resources import Workers, plan_local
from npdraw_dist.distributed.start import is_local, placed
from npdraw_dist.pipeline import bank, data, parse, prior, sample, vae
from npdraw_dist.pipeline.data import Given, RunData
from npdraw_dist.pipeline.progress import console, logged
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.stage import Manifest, Stage
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, VOCABULARY, Store, Watcher
from npdraw_dist.pipeline.tracking import tracked
from npdraw_dist.pipeline.train_stage import plan

Counts = Mapping[str, int | None]  # split -> images; None if only reading would tell

STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (data.STAGE, bank.STAGE, parse.STAGE, prior.STAGE, vae.STAGE, sample.STAGE)
}
TRAINING = ("prior", "vae")
LIKE_OWN = ("imagefolder", "parquet")  # sources that read all files of a kind that a run writes too
SHOWN = 5  # names of classes in a message


def start(
    experiment: Experiment,
    storage: str,
    name: str,
    stages: Sequence[str],
    list_pictures: bool = True,
    track: str | None = None,
    watchers: Sequence[Watcher] = (),
    given: Given | None = None,
) -> Store:
    """Does what is missing of `stages` in the run `storage`/`name`, a new one or one to resume.

    track: a service that the run is sent to. watchers: see each row of metrics. given: images in place of
    those of `data.source`. Raises UserError on a mistake, early where that can be.
    """
    images = RunData(experiment, given)
    store = Store.open(storage, name)
    store.watchers.extend(watchers)
    with ExitStack() as stack:
        experiment, missing, held = prepare_run(experiment, store, stages, stack, images, track)
        if held is None:
            print(f"all done: {store.shown()} has {', '.join(stages)} for this config")
            return store
        report(store, run_stages(experiment, store, missing, held, images), list_pictures)
    return store


def prepare_run(
    experiment: Experiment,
    store: Store,
    stages: Sequence[str],
    stack: ExitStack,
    images: RunData,
    track: str | None = None,
) -> tuple[Experiment, Sequence[str], Lease | None]:
    """All checks of a run, cheap ones first; then its lease, log and tracker, until `stack` ends.

    Returns its config, the stages to do, and the lease, None if nothing is to do. Nothing is written and no
    Ray is started before the run can begin. Raises UserError if it cannot.
    """
    experiment = experiment.model_copy(update={"scale": placed(experiment.scale)})
    require_format(store, experiment.stage_names)
    new, fresh = not store.has(CONFIG), not store.has()
    if not new:
        store.claim(experiment)
        images.require_same(store)
    missing = unfinished(experiment, store, stages)
    if not missing:
        return experiment, missing, None
    if track is not None:
        require_extra(f"--track {track}", track, track)
    check(experiment, store, missing, images)
    if new:
        store.require_own()
    held = stack.enter_context(store.lease())
    if new and store.claim(experiment) and fresh:
        stack.enter_context(removed_if_refused(store, held))
    stack.enter_context(logged(store))
    console.note(f"stages {', '.join(missing)}, npdraw_dist {__version__}")
    if not experiment.scale.here:
        from npdraw_dist.distributed.nodes import require_shared
        from npdraw_dist.distributed.start import start_ray

        start_ray(experiment.scale)
        require_shared(store.landmarks())
    require_workers(experiment, missing)
    stack.enter_context(tracked(experiment, store, track))
    return experiment, missing, held


@contextmanager
def removed_if_refused(store: Store, held: Lease) -> Iterator[None]:
    """Removes a new run's folder if the block ends with a user's mistake and nothing of worth is in it.

    held: the lease on the run. Raises LeaseLost if another driver took the run over.
    """
    try:
        yield
    except StorageFailed:
        raise
    except UserError:
        held.check()  # else the folder is another driver's
        if not any(is_of_worth(store, folder) for folder in FOLDERS.values()):
            store.remove()
        raise


def is_of_worth(store: Store, folder: str) -> bool:
    """Whether the folder of a stage holds what a later command can use, or the list of bad rows.

    Images that were read are of no use by themselves: a mistake in the config that only the next stage finds
    needs another config, and the run would be refused for it.
    """
    if store.has(folder, REJECTS):
        return True
    if store.has(folder, MANIFEST):
        return folder != FOLDERS["data"]
    files = list_files(store.filesystem, store.path(folder, DONE))
    has_shards = any(not path.endswith(f"/{MARKER}") for path, _ in files)
    return has_shards or (folder in TRAINING and store.has(folder))


def require_format(store: Store, stages: Sequence[str]) -> None:
    """Raises OtherFormat if another version made what this one cannot read; says which others resumed."""
    folders = [FOLDERS[stage] for stage in stages if stage in FOLDERS]
    made = [folder for folder in folders if store.has(folder, MANIFEST)]
    found = {version_of(store.read_json(folder, MANIFEST), store.shown(folder)) for folder in made}
    if others := sorted(version for version in found if version not in (None, __version__)):
        console.print(f"{store.shown()}: made by {', '.join(others)}, resumed by {__version__}")


def run_stages(
    experiment: Experiment,
    store: Store,
    stages: Sequence[str],
    held: Lease,
    images: RunData | None = None,
) -> dict[str, Manifest]:
    """Runs the stages in order; returns the manifest of each.

    held: the lease on the run. Raises LeaseLost if another driver took the run over, StorageFailed if the
    storage failed.
    """
    manifests: dict[str, Manifest] = {}
    try:
        for name in (name for name in STAGES if name in stages):
            held.check()
            if name == data.NAME:
                manifests[name] = data.run(experiment, store, images)
                later = [stage for stage in stages if stage not in manifests]
                # Only reading may have told how many images each split has, and their classes.
                require_images(experiment, manifests[name]["splits"], later)
                if not manifests[name]["source"]["classes"]:
                    require_classes(experiment, manifests[name]["classes"])
            else:
                manifests[name] = STAGES[name].run(experiment, store)
        return manifests
    except UserError:
        held.check()
        raise
    except Exception as error:
        if error is store.failed:  # a callback's error is no fault of the storage
            raise
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
    for picture in chain.from_iterable(stage.pictures for stage in STAGES.values()):
        if list_pictures and store.has(picture):
            printed.print(store.shown(picture))


def unfinished(experiment: Experiment, store: Store, stages: Sequence[str]) -> list[str]:
    """The stages that lack their output. Raises UserError if one has that of another config."""
    return [stage for stage in stages if STAGES[stage].done(experiment, store) is None]


def check(experiment: Experiment, store: Store, stages: Sequence[str], images: RunData | None = None) -> None:
    """Raises UserError if `stages`, none of which is done, cannot run; warns if the disk may be too small.

    images: if they are open already. Workers of a cluster are checked once it is joined (`require_workers`).
    """
    require_inputs(experiment, store, stages)
    images, source = images or RunData(experiment), experiment.data
    if source.source in LIKE_OWN and source.path is not None and data.NAME in stages:
        require_apart(source.path, store.filesystem, store.root, "the run", "--storage")
    counts = images.counts(store) if data.NAME in stages else read_counts(store)
    require_images(experiment, counts, stages)
    require_classes(experiment, images.classes(store) if data.NAME in stages else read_classes(store))
    if is_local():
        require_workers(experiment, stages)


def require_inputs(experiment: Experiment, store: Store, stages: Sequence[str]) -> None:
    """Raises UserError if a stage needs the output of another that is neither there nor in `stages`."""
    lacks = {}
    for stage in stages:
        needs = [name for name in STAGES[stage].needs if name in experiment.stage_names]
        if missing := unfinished(experiment, store, [name for name in needs if name not in stages]):
            lacks[stage] = missing
    if lacks:
        stage, missing = next(iter(lacks.items()))
        needed = {*stages, *chain(*lacks.values())}
        raise UserError(
            f"stage {stage} needs {' and '.join(missing)}, not finished in {store.shown()}; run all: "
            f"--stages {','.join(name for name in experiment.stage_names if name in needed)}"
        )


def read_counts(store: Store) -> Counts:
    """The images of each split that a run has read; {} if it has not."""
    has = store.has(FOLDERS["data"], MANIFEST)
    counts: Counts = store.read_json(FOLDERS["data"], MANIFEST)["splits"] if has else {}
    return counts


def read_classes(store: Store) -> Sequence[str]:
    """The names of the classes of the images that a run has read; empty if it has not, or there are none."""
    has = store.has(FOLDERS["data"], VOCABULARY)
    classes: Sequence[str] = store.read_json(FOLDERS["data"], VOCABULARY)["classes"] if has else []
    return classes


def require_images(experiment: Experiment, counts: Counts, stages: Sequence[str]) -> None:
    """Raises UserError if the images are known to be too few for one of the stages."""
    source, places, train = experiment.data, experiment.canvas_grid.places, counts.get("train")
    if "bank" in stages and not experiment.init.has_parts:
        k, kept = experiment.bank.size, experiment.bank.max_patches
        said = f"bank.size is {k}"
        if k > kept:
            raise UserError(f"{said}, but bank.max_patches keeps {kept} patches; lower bank.size")
        if train is not None and k > train * places:
            raise UserError(
                f"{said}, but {train:,} training images of {places} places have at most "
                f"{train * places:,} patches; lower it"
            )
    if counts.get("valid") == 0 and experiment.train.select == "best" and set(stages) & set(TRAINING):
        raise UserError(
            f"data.source {source.source} has no validation image, and train.select best needs some; raise "
            f"--data.valid_fraction ({source.valid_fraction:g}) or set --train.select last"
        )
    scored = experiment.eval.split
    if counts.get(scored) == 0 and "sample" in stages:
        fraction = getattr(source, f"{scored}_fraction")
        advice = f"raise --data.{scored}_fraction ({fraction:g})"
        if scored == "test":
            again = "prepare the data again with test images"  # what is prepared keeps its splits
            advice = f"{again if _is_prepared(source) else advice} or set --eval.split valid"
        raise UserError(f"data.source {source.source} has no {scored} image for the final numbers; {advice}")


def _is_prepared(data: DataConfig) -> bool:
    reads = SOURCES[data.source].prepared and data.path is not None
    return reads and read_prepared(*open_filesystem(str(data.path))) is not None


def require_classes(experiment: Experiment, classes: Sequence[str]) -> None:
    """Raises UserError if init.model knows none of the classes of the data; warns if it lacks some.

    The labels of these are dropped. A run that starts from no model conditioned on classes takes any.
    """
    entries = experiment.prior.vocabulary if experiment.prior.condition == "class" else ()
    others = [name for name in classes if name not in set(entries)]
    if not entries or not others:
        return
    known, lacks = (", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN) for names in (entries, others))
    if len(others) == len(classes):
        raise UserError(
            f"init.model knows the classes {known}; the images have none of them, but {lacks}: name them as "
            "it does, or start from a model that is told no class"
        )
    printed.print(
        f"warning: init.model knows no class {lacks}; images of these train without a class", markup=False
    )


def require_workers(experiment: Experiment, stages: Sequence[str]) -> Workers:
    """The workers of the stages, in the running Ray, in the one that will start here, or without Ray.

    Raises UserError if they do not fit. Bank and parse need a GPU only if scale.use_gpu says so.
    """
    scale = experiment.scale
    if not scale.here and not set(stages) & set(TRAINING):
        scale = scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None})
    return plan_local(scale) if is_local() and not scale.here else plan(scale)
