"""What can be known of a run before anything is computed: stages, images, workers and space on the disk.

Nothing is written, and no Ray is started: what is wrong is told within seconds, not after a stage of hours.
Symbols: K parts, L places.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.outputs import COMPRESSED, Size, require_space
from npdraw_dist.core.storage import list_files
from npdraw_dist.data.shards import open_source
from npdraw_dist.nn.hub import make_model
from npdraw_dist.pipeline import parse, sample
from npdraw_dist.pipeline.models import source_parts
from npdraw_dist.pipeline.progress import results
from npdraw_dist.pipeline.stage_job import is_streamed
from npdraw_dist.pipeline.store import FOLDERS, Store, finished
from npdraw_dist.training.loop import KEPT
from npdraw_dist.training.workers import Workers, is_local, plan_local, require_compiler, worker_here

# Stage -> the stages whose output it reads.
NEEDS = {
    "bank": (),
    "parse": ("bank",),
    "prior": ("parse",),
    "vae": ("bank", "parse", "prior"),
    "sample": ("bank", "parse", "prior", "vae"),
}
READING, TRAINING = ("bank", "parse"), ("prior", "vae")
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
    size = expected_size(experiment, counts, stages)
    there = sum(_bytes_below(store, FOLDERS[stage]) for stage in stages if stage in FOLDERS)
    left = Size(size.least - there, size.most - there)
    advice = "free some, or take another --storage"
    if warning := require_space(store.filesystem, store.root, left, advice):
        results.print(f"warning: {warning}")
    return counts


def require_inputs(experiment: Experiment, store: Store, stages: Sequence[str]) -> None:
    """Raises UserError if a stage needs the output of another that is neither there nor in `stages`."""
    for stage in stages:
        if missing := _missing(experiment, store, stage, stages):
            raise UserError(
                f"stage {stage} needs {' and '.join(missing)}, not finished in {store.shown()}; run all: "
                f"--stages {','.join([*missing, stage])}"
            )


def _missing(experiment: Experiment, store: Store, stage: str, stages: Sequence[str]) -> list[str]:
    """The stages that would have to run before `stage`, in order."""
    found: set[str] = set()
    for need in NEEDS[stage]:
        known = need in experiment.stage_names and need not in stages
        if known and not _is_done(experiment, store, need):
            found |= {need, *_missing(experiment, store, need, stages)}
    return [name for name in experiment.stage_names if name in found]


def image_counts(experiment: Experiment, store: Store, stages: Sequence[str]) -> Counts:
    """The images of each split: of the source if a stage reads it, else of the parses.

    Raises UserError if the source is missing or damaged.
    """
    if set(stages) & set(READING):
        asked = store.as_asked(experiment)
        source = open_source(asked.data, asked.seed)
        return {split: source.count(split) for split in parse.needed_splits(experiment)}
    if store.has(FOLDERS["parse"], "manifest.json"):
        counts: Counts = store.read_json(FOLDERS["parse"], "manifest.json").get("splits", {})
        return counts
    return {}


def require_images(experiment: Experiment, counts: Counts, stages: Sequence[str]) -> None:
    """Raises UserError if the images are known to be too few for one of the stages."""
    data, places = experiment.data, experiment.canvas_grid.places
    train = counts.get("train")
    if "bank" in stages:
        k, kept, said = (
            experiment.bank.size,
            experiment.bank.max_patches,
            f"bank.size is {experiment.bank.size}",
        )
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
    if counts.get("valid") == 0 and (needed := _needs_validation(experiment, stages)):
        what, otherwise = needed
        raise UserError(
            f"data.source {data.source} has no validation image, and {what} needs some; raise "
            f"--data.valid_fraction ({data.valid_fraction:g}) or set {otherwise}"
        )
    scored = experiment.eval.split
    if counts.get(scored) == 0 and "sample" in stages:
        fraction = getattr(data, f"{scored}_fraction")
        raise UserError(
            f"data.source {data.source} has no {scored} image for the final numbers; "
            f"raise --data.{scored}_fraction ({fraction:g})"
        )


def _needs_validation(experiment: Experiment, stages: Sequence[str]) -> tuple[str, str] | None:
    """The setting that needs validation images, and what to set without them; None if none does."""
    if experiment.train.select == "best" and set(stages) & set(TRAINING):
        return "train.select best", "--train.select last"
    return None


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
    """What the stages write, as far as it is known; pictures and metrics are not counted.

    Parses: an image and 5 bytes a step each, of which compression leaves COMPRESSED or more. Checkpoints:
    4 bytes a parameter, and 8 of Adam's moments and 4 of an average where it is trained; one more than is
    kept while one is written. The bank: 4 bytes a value.
    """
    size = Size()
    if "parse" in stages:
        images, pixels = sum(count or 0 for count in counts.values()), math.prod(experiment.data.shape)
        size += Size(COMPRESSED * images * pixels, images * (pixels + 5 * experiment.steps))
    if "bank" in stages:
        bank = 4.0 * experiment.bank.size * experiment.data.shape[0] * experiment.grid.patch**2
        size += Size(bank, bank)
    trained = [stage for stage in TRAINING if stage in stages]
    sizes = parameters(experiment) if trained else {}
    for stage in trained:
        written = -(-experiment.section_of(stage).images // experiment.train.eval_every_images)
        kept = min(KEPT, written)
        each = 16.0 if experiment.train.average_images else 12.0
        size += Size(4.0 * sizes[stage] * kept, each * sizes[stage] * (kept + 1))
    return size


def parameters(experiment: Experiment) -> dict[str, int]:
    """Training stage -> the number of parameters of its network."""
    spec = spec_of(experiment)
    wide = max(_integers(spec.model_dump())) > WIDE
    with torch.device("meta" if wide else "cpu"), torch.random.fork_rng(devices=[]):
        model = make_model(spec)
    prior = getattr(model, "prior", None)
    counts = {"vae": sum(value.numel() for value in model.parameters())}
    if isinstance(prior, torch.nn.Module):
        counts["prior"] = sum(value.numel() for value in prior.parameters())
    return counts


def _integers(values: object) -> list[int]:
    """The integers in nested dictionaries."""
    if isinstance(values, Mapping):
        return [number for value in values.values() for number in _integers(value)]
    return [values] if isinstance(values, int) else []


def _bytes_below(store: Store, folder: str) -> int:
    """Bytes of what an earlier start of the run wrote."""
    if not store.is_local or not store.has(folder):
        return 0
    return sum(size for _, size in list_files(store.filesystem, store.path(folder)))
