"""Checks a run, runs its missing stages in order, and prints a table of their numbers.

A user's mistake that can be detected before any computation is reported within seconds, not after hours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

from rich.table import Column, Table

from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.vocabulary import VOCABULARIES
from npdraw_dist.data.rows import REJECTS
from npdraw_dist.data.shard_folder import DONE, MARKER
from npdraw_dist.distributed.failures import storage_failed
from npdraw_dist.distributed.resources import Workers, plan_local, shortage
from npdraw_dist.distributed.start import can_grow, is_local, placed
from npdraw_dist.pipeline import bank, data, parse, prior, sample, vae
from npdraw_dist.pipeline.data import Given, RunData
from npdraw_dist.pipeline.progress import console, logged
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.stage import Manifest, Stage, Watch, Watcher
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, VOCABULARY, Store
from npdraw_dist.pipeline.tracking import tracked
from npdraw_dist.pipeline.train_stage import plan
from npdraw_dist.system.errors import StorageFailed, UserError
from npdraw_dist.system.lease import Lease
from npdraw_dist.system.process import require_extra
from npdraw_dist.system.storage import list_files, require_apart
from npdraw_dist.system.version import __version__

Counts = Mapping[str, int | None]  # images in each split; None if known only after reading

STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (data.STAGE, bank.STAGE, parse.STAGE, prior.STAGE, vae.STAGE, sample.STAGE)
}
TRAINING = ("prior", "vae")
LIKE_OWN = ("imagefolder", "parquet")  # sources that would also read the files of a run
SHOWN = 5  # largest number of class names in a message


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
    """Begins or resumes the run `storage`/`name`, and runs those of `stages` that lack their output.

    track: the service that receives the metrics. watchers: called with each row of metrics. given: images
    that replace `data.source`. Raises UserError on invalid input, if possible before anything is written.
    """
    experiment = experiment.model_copy(update={"scale": placed(experiment.scale)})
    images, store = RunData(experiment, given), Store.open(storage, name)
    missing = check_run(experiment, store, stages, images, track)
    if not missing:
        print(f"all done: {store.shown()} has {', '.join(stages)} for this config")
        return store
    has_folder = store.has()
    with ExitStack() as stack:
        lease = stack.enter_context(store.lease())
        if store.claim(experiment) and not has_folder:
            stack.enter_context(removed_if_refused(store, lease))
        stack.enter_context(logged(store))
        console.note(f"stages {', '.join(missing)}, npdraw_dist {__version__}")
        if not experiment.scale.in_process:
            from npdraw_dist.distributed.nodes import require_shared
            from npdraw_dist.distributed.start import start_ray

            start_ray(experiment.scale)
            require_shared(store.landmarks())
        require_workers(experiment, missing)
        if track is not None:
            watchers = (*watchers, stack.enter_context(tracked(experiment, store, track)))
        report(store, run_stages(experiment, store, missing, lease, images, Watch(watchers)), list_pictures)
    return store


def check_run(
    experiment: Experiment, store: Store, stages: Sequence[str], images: RunData, track: str | None = None
) -> list[str]:
    """Makes all checks that need no cluster and write nothing; returns the stages that lack their output.

    Raises UserError if the run cannot begin.
    """
    if store.has(CONFIG):
        store.claim(experiment)
        images.require_same(store)
    else:
        store.require_own()
    if missing := unfinished(experiment, store, stages):
        if track is not None:
            require_extra(f"--track {track}", track, track)
        check(experiment, store, missing, images)
    return missing


@contextmanager
def removed_if_refused(store: Store, lease: Lease) -> Iterator[None]:
    """Removes the folder of a new run if a user's mistake ends the block and no stage folder `is_of_value`.

    lease: the lease of the run. Raises LeaseLost if another driver took over the run.
    """
    try:
        yield
    except StorageFailed:
        raise
    except UserError:
        lease.check()  # raises LeaseLost if the folder belongs to another driver now
        if not any(is_of_value(store, folder) for folder in FOLDERS.values()):
            store.remove()
        raise


def is_of_value(store: Store, folder: str) -> bool:
    """Whether a stage's folder contains a list of rejected images, or output that a later command can use.

    The images of the stage `data` do not count, since the next stage may find a mistake in the config, and an
    existing run would refuse the corrected config.
    """
    if store.has(folder, REJECTS):
        return True
    if store.has(folder, MANIFEST):
        return folder != FOLDERS["data"]
    if folder in TRAINING:
        return store.has(folder)
    files = list_files(store.filesystem, store.path(folder, DONE))
    return any(not path.endswith(f"/{MARKER}") for path, _ in files)


def run_stages(
    experiment: Experiment,
    store: Store,
    stages: Sequence[str],
    lease: Lease,
    images: RunData | None = None,
    watch: Watch | None = None,
) -> dict[str, Manifest]:
    """Runs the stages in order; returns the manifest of each.

    lease: the lease of the run. Raises LeaseLost if another driver took over the run, and StorageFailed if
    the storage failed.
    """
    watch = watch or Watch()
    manifests: dict[str, Manifest] = {}
    try:
        for name in (name for name in STAGES if name in stages):
            lease.check()
            if name == data.NAME:
                manifests[name] = manifest = data.run(experiment, store, images)
                # Some sources give the number of images in each split, and the classes, only during reading.
                require_images(experiment, manifest["splits"], [one for one in stages if one != name])
                if not manifest["source"]["classes"]:
                    require_classes(experiment, manifest["classes"])
            elif name in TRAINING:
                manifests[name] = STAGES[name].run(experiment, store, watch=watch)
            else:
                manifests[name] = STAGES[name].run(experiment, store)
        return manifests
    except UserError:
        lease.check()
        raise
    except Exception as error:
        failed = None if error is watch.failed else storage_failed(name, error)
        if failed is None:
            raise
        raise failed from None


def report(store: Store, manifests: Mapping[str, Manifest], list_pictures: bool = True) -> None:
    """Prints a table of the stages (seconds, images/s, numbers), and the paths of the run's pictures."""
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
    """Those of `stages` that lack their output. Raises UserError if one finished with another config."""
    return [stage for stage in stages if STAGES[stage].done(experiment, store) is None]


def check(experiment: Experiment, store: Store, stages: Sequence[str], images: RunData | None = None) -> None:
    """Raises UserError if `stages`, which all lack their output, cannot run.

    images: the source, if known already. The workers of a cluster are checked later, when Ray has started.
    """
    source, reads = experiment.data, data.NAME in stages
    images = images or RunData(experiment)
    require_inputs(experiment, store, stages)
    if reads and source.source in LIKE_OWN and source.path is not None:
        require_apart(source.path, store.filesystem, store.root, "the run", "--storage")
    require_images(experiment, images.counts(store) if reads else read_counts(store), stages)
    require_classes(experiment, images.classes(store) if reads else read_classes(store))
    if is_local():
        require_workers(experiment, stages)


def require_inputs(experiment: Experiment, store: Store, stages: Sequence[str]) -> None:
    """Raises UserError if a stage needs another stage that is neither finished nor in `stages`."""
    others = {name for name in experiment.stage_names if name not in stages}
    needs = {stage: [name for name in STAGES[stage].needs if name in others] for stage in stages}
    lacks = {stage: found for stage in stages if (found := unfinished(experiment, store, needs[stage]))}
    if lacks:
        stage, missing = next(iter(lacks.items()))
        needed = {*stages, *chain(*lacks.values())}
        raise UserError(
            f"stage {stage} needs {' and '.join(missing)}, which {store.shown()} lacks; give "
            f"--stages {','.join(name for name in experiment.stage_names if name in needed)}"
        )


def read_counts(store: Store) -> Counts:
    """The number of images in each split that a run has read; {} if the run has read no images."""
    has = store.has("data", MANIFEST)
    return dict(store.read_json("data", MANIFEST)["splits"]) if has else {}


def read_classes(store: Store) -> Sequence[str]:
    """The class names of the images that a run has read; [] if there are no images or no classes."""
    has = store.has("data", VOCABULARY)
    return list(store.read_json("data", VOCABULARY)["classes"]) if has else []


def require_images(experiment: Experiment, counts: Counts, stages: Sequence[str]) -> None:
    """Raises UserError if the images are known to be too few for one of the stages."""
    source, places, train = experiment.data, experiment.canvas_grid.places, counts.get("train")
    if "bank" in stages and not experiment.init.has_parts:
        k, kept = experiment.bank.size, experiment.bank.max_patches
        if k > kept:
            raise UserError(f"bank.size is {k}, but bank.max_patches keeps {kept} patches; lower bank.size")
        if train is not None and k > train * places:
            raise UserError(
                f"bank.size is {k}, but {train:,} training images of {places} places have at most "
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
        raise UserError(
            f"data.source {source.source} has no {scored} image for the final numbers; raise "
            f"--data.{scored}_fraction ({fraction:g}; for prepared data, in `npdraw prepare`)"
            + " or set --eval.split valid"
            * (scored == "test")
        )


def require_classes(experiment: Experiment, classes: Sequence[str]) -> None:
    """Raises UserError if init.model knows none of the images' classes; warns if it knows only some.

    Images of other classes are used without a class. Without init.model, the prior learns all classes.
    """
    reads_label = VOCABULARIES[experiment.prior.condition].column == "label"
    entries = experiment.prior.vocabulary if reads_label else ()
    others = [name for name in classes if name not in set(entries)]
    if not entries or not others:
        return
    known, lacks = (", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN) for names in (entries, others))
    if len(others) == len(classes):
        raise UserError(
            f"init.model knows the classes {known}; the images have {lacks}; rename these, or start "
            "from a model without classes"
        )
    printed.print(
        f"warning: init.model knows no class {lacks}; their images are trained without a class", markup=False
    )


def require_workers(experiment: Experiment, stages: Sequence[str]) -> Workers:
    """Plans the workers in the running Ray, in the local Ray that will start, or in this process.

    Raises UserError if resources are too few. In a cluster that can grow, the first stage that trains
    requests its workers, since GPUs would idle until then; a line says if they are not there yet.
    """
    scale, trains = experiment.scale, set(stages) & set(TRAINING)
    later = can_grow() and stages[0] not in TRAINING
    if not scale.in_process and (later or not trains):
        without = {"use_gpu": False} if later else {}
        scale = scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None, **without})
        if trains and later and (line := shortage(experiment.scale)) is not None:
            console.print(f"training will wait for nodes: {line}", markup=False)
    return plan_local(scale) if is_local() and not scale.in_process else plan(scale)
