"""What can be known of a run before anything is computed: stages, images, workers and space on the disk.

Nothing is written, and no Ray is started: what is wrong is told within seconds, not after a stage of hours.
Symbols: K parts, L places.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.outputs import COMPRESSED, Size, require_space
from npdraw_dist.core.storage import list_files
from npdraw_dist.nn.hub import make_model
from npdraw_dist.pipeline import inputs, parse, sample
from npdraw_dist.pipeline.models import source_parts
from npdraw_dist.pipeline.progress import results
from npdraw_dist.pipeline.stage_job import is_streamed
from npdraw_dist.pipeline.store import FOLDERS, Store, finished
from npdraw_dist.training.loop import KEPT
from npdraw_dist.training.workers import Workers, is_local, plan_local, require_compiler, worker_here

TRAINING = ("prior", "vae")
WIDE = 1024  # a network with a larger number in its spec is built without memory, which costs a second

# Split -> images; None if only reading would tell.
Counts = Mapping[str, int | None]


def unfinished(experiment: Experiment, store: Store, stages: Sequence[str]) -> list[str]:
    """The stages that lack their output. Raises UserError if one has that of another config."""
    return [stage for stage in stages if not _is_done(experiment, store, stage)]


def _is_done(experiment: Experiment, store: Store, stage: str) -> bool:
    if stage == "sample":
        return sample.is_done(experiment, store)
    if stage == "vae" and not store.has("model", "model.safetensors"):
        return False
    manifest = finished(store, experiment, stage)
    return manifest is not None and (stage != "parse" or parse.has_splits(manifest, experiment))


def check(experiment: Experiment, store: Store, stages: Sequence[str]) -> Counts:
    """Raises UserError if `stages`, none of which is done, cannot run; prints a warning if the disk may be
    too small. Returns the images of each split.

    The workers are checked if a Ray of this machine will run them; those of a cluster once it is joined, by
    `require_workers`.
    """
    require_inputs(experiment, store, stages)
    counts = image_counts(experiment, store, stages)
    require_images(experiment, counts, stages)
    if set(stages) & set(TRAINING):
        require_compiler(experiment.train.compile)
    if is_local():
        require_workers(experiment, counts, stages)
    size, there = expected_size(experiment, counts, stages), 0
    if store.is_local:  # what an earlier start of the run wrote needs no space again
        paths = [store.path(FOLDERS[stage]) for stage in stages if stage in FOLDERS]
        there = sum(size for path in paths for _, size in list_files(store.filesystem, path))
    left = Size(size.least - there, size.most - there)
    advice = "free some, or take another --storage"
    if warning := require_space(store.filesystem, store.root, left, advice):
        results.print(f"warning: {warning}")
    return counts


def require_inputs(experiment: Experiment, store: Store, stages: Sequence[str]) -> None:
    """Raises UserError if a stage needs the output of another that is neither there nor in `stages`."""
    for stage in stages:
        earlier = experiment.stage_names[: experiment.stage_names.index(stage)]
        missing = unfinished(experiment, store, [name for name in earlier if name not in stages])
        if missing and not (stage == "prior" and "parse" not in missing):  # the prior reads parses alone
            raise UserError(
                f"stage {stage} needs {' and '.join(missing)}, not finished in {store.shown()}; run all: "
                f"--stages {','.join([*missing, stage])}"
            )


def image_counts(experiment: Experiment, store: Store, stages: Sequence[str]) -> Counts:
    """The images of each split: of the source if a stage reads it, else of the parses.

    Raises UserError if the source is missing or damaged.
    """
    if set(stages) & set(inputs.READ_DATA):
        source = inputs.source_of(experiment, store)
        return {split: source.count(split) for split in parse.needed_splits(experiment)}
    if store.has(FOLDERS["parse"], "manifest.json"):
        counts: Counts = store.read_json(FOLDERS["parse"], "manifest.json").get("splits", {})
        return counts
    return {}


def require_images(experiment: Experiment, counts: Counts, stages: Sequence[str]) -> None:
    """Raises UserError if the images are known to be too few for one of the stages."""
    data, places, train = experiment.data, experiment.canvas_grid.places, counts.get("train")
    if "bank" in stages:
        k, kept = experiment.bank.size, experiment.bank.max_patches
        said = f"bank.size is {k}"
        if experiment.init.model is not None:
            k -= len(source_parts(experiment))
            said = f"bank.size adds {k} parts to those of init.model"
        if k > kept:
            raise UserError(f"{said}, but bank.max_patches keeps {kept} patches; lower bank.size")
        if train is not None and k > train * places:
            raise UserError(
                f"{said}, but {train:,} training images of {places} places have at most "
                f"{train * places:,} patches; lower it"
            )
    if counts.get("valid") == 0 and experiment.train.select == "best" and set(stages) & set(TRAINING):
        raise UserError(
            f"data.source {data.source} has no validation image, and train.select best needs some; raise "
            f"--data.valid_fraction ({data.valid_fraction:g}) or set --train.select last"
        )
    scored = experiment.eval.split
    if counts.get(scored) == 0 and "sample" in stages:
        fraction = getattr(data, f"{scored}_fraction")
        raise UserError(
            f"data.source {data.source} has no {scored} image for the final numbers; "
            f"raise --data.{scored}_fraction ({fraction:g})"
        )


def require_workers(experiment: Experiment, counts: Counts, stages: Sequence[str]) -> Workers:
    """The workers of the stages, in the running Ray, in the one that will start here, or without Ray.

    Raises UserError if they do not fit. Bank and parse need a GPU only if scale.use_gpu says so.
    """
    scale, reading = experiment.scale, False
    if set(stages) & set(TRAINING):
        reading = is_streamed(experiment, counts.get("train") or 0)
    else:
        scale = scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None})
    if experiment.scale.here:
        return worker_here(scale)
    if is_local():
        return plan_local(scale, reading)
    from npdraw_dist.training.cluster import plan_workers

    return plan_workers(scale, reading)


def expected_size(experiment: Experiment, counts: Counts, stages: Sequence[str]) -> Size:
    """What the stages write, as far as it is known, in bytes; pictures and metrics are not counted.

    Parses: an image and 5 bytes a step each, of which compression leaves COMPRESSED or more. Checkpoints:
    4 bytes a parameter, and 8 of Adam's moments and 4 of an average where it is trained; one more than is
    kept while one is written. The bank: 4 bytes a value.
    """
    size, pixels = Size(), math.prod(experiment.data.shape)
    if "parse" in stages:
        images = sum(count or 0 for count in counts.values())
        size += Size(COMPRESSED * images * pixels, images * (pixels + 5 * experiment.steps))
    if "bank" in stages:
        bank = 4.0 * experiment.bank.size * experiment.data.shape[0] * experiment.grid.patch**2
        size += Size(bank, bank)
    trained = [stage for stage in TRAINING if stage in stages]
    sizes = parameters(experiment) if trained else {}
    for stage in trained:
        written = -(-experiment.section_of(stage).images // experiment.train.eval_every_images)
        kept, each = min(KEPT, written), 16.0 if experiment.train.average_images else 12.0
        size += Size(4.0 * sizes[stage] * kept, each * sizes[stage] * (kept + 1))
    return size


def parameters(experiment: Experiment) -> dict[str, int]:
    """Training stage -> the number of parameters of its network."""
    spec = spec_of(experiment)
    numbers = [value for value in flat(spec.model_dump()).values() if isinstance(value, int)]
    wide = max(*numbers, *spec.image_shape) > WIDE
    with torch.device("meta" if wide else "cpu"), torch.random.fork_rng(devices=[]):
        model = make_model(spec)
    networks = {"vae": model, "prior": getattr(model, "prior", None)}
    return {
        stage: sum(value.numel() for value in network.parameters())
        for stage, network in networks.items()
        if isinstance(network, torch.nn.Module)
    }
