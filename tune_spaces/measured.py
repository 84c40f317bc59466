"""Measures a run for `npdraw report`: likelihood bounds of each image, NLL by k, distances, edits and cost.

The numbers are stored in the folder `comparison/` of the run, so a second start measures only what is
missing. Noise is seeded by batch, so all runs get equal binary pixels. Shapes: N images, M samples, k draws.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.core.images import to_float
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Source, open_source
from npdraw_dist.data.splits import Split
from npdraw_dist.evaluate.edits import EDITS
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.evaluate.work import Evaluation, ShardSlice, Work, Worker, in_batch_order
from npdraw_dist.measure.bounds import LogMeanExp
from npdraw_dist.measure.distances import all_distances, neighbours
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.measure.metrics import group
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.pipeline.inputs import read_shards
from npdraw_dist.pipeline.scores import BATCH, K_CHUNK
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.trained_models import load_model
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, read_bytes, write_bytes
from npdraw_dist.training.feed import noise_seed

FOLDER, ARRAYS = "comparison", "arrays.npz"
DONE = "numbers.json"  # written last, so it marks a finished measurement
KS = (1, 5, 10, 50, 100, 500, 1000, 5000)  # numbers of draws k for which the curve shows the NLL
CURVE_IMAGES = 16
SHOWN_SAMPLES = 12
CURVE, NOISE = 2**32 - 7, 2**32 - 8  # keys of noise seeds, distinct from the numbers of shards


@dataclass(frozen=True)
class Entry:
    """A final run of a comparison.

    kind: the kind of its model, or a variant (`registry.kind_of`). role: `seed` for one of several seeds, or
    `longest` for the run "until it stops improving". facts: the sweep's record of images, core_seconds,
    valid_nll, still_improving and failed. leading: whether the run is the first seed of its kind and
    fraction; the report shows the curve and samples of such a run.
    """

    folder: str
    kind: str
    fraction: float
    seed: int
    role: str
    facts: Mapping[str, Any]
    leading: bool = False


@dataclass(frozen=True)
class Measured:
    """The numbers of a run. ids, nll_iwae and elbo (nats) have an entry for each of N images.

    Only a leading run has curve (k -> NLL), samples and nearest (both images (n, C, H, W) in [0, 1]).
    """

    entry: Entry
    ids: list[str]
    nll_iwae: NDArray[np.float64]
    elbo: NDArray[np.float64]
    numbers: Mapping[str, float]
    curve: Mapping[int, float] = field(default_factory=dict)
    samples: Any = None
    nearest: Any = None


def measure(entry: Entry, settings: EvaluationSettings, extractor: ExtractorFile | None) -> str:
    """Measures a run, unless it was measured before; returns its folder."""
    store = Store(*open_filesystem(entry.folder))
    if store.has(FOLDER, DONE):
        return entry.folder
    model = load_model(f"{entry.folder}/model")
    evaluation = _evaluation(entry, "test", model, settings)
    found, images = evaluation.scores(), evaluation.images()
    scores = in_batch_order(found)
    arrays: dict[str, Any] = {"ids": np.array([name for each in found for name in each.ids])}
    arrays |= {name: scores[name].numpy() for name in ("nll_iwae", "elbo")}
    numbers: dict[str, float] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops(model, images[:1]),
        **{name: float(entry.facts[name]) for name in ("core_seconds", "images", "valid_nll")},
        **{name: float(scores[name].mean()) for name in group("term") if name in scores},
    }
    if model.spec.likelihood != "bernoulli":  # bits per dimension are not customary for binary data
        numbers["dimensions"] = images[0].numel()
    if extractor is not None:
        distances = evaluation.distances(settings.samples or 0, extractor)
        numbers |= {name: distances[name] for name in group("distance")}
        if model.has_regions:
            numbers |= evaluation.edits(EDITS, extractor)
    curve: dict[int, float] = {}
    if entry.leading:
        curve = curve_of(model, images[:CURVE_IMAGES], settings.seed)
        arrays |= _shown(model, entry, settings)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    store.filesystem.create_dir(store.path(FOLDER), recursive=True)
    write_bytes(store.filesystem, store.path(FOLDER, ARRAYS), file.getvalue())
    store.write_json({"numbers": numbers, "curve": curve}, FOLDER, DONE)
    return entry.folder


def _evaluation(
    entry: Entry,
    split: Split,
    model: GenerativeModel,
    settings: EvaluationSettings,
    fraction: float | None = None,
) -> Evaluation:
    """The evaluation of all images of a split, in this process. fraction: as for `source_of`."""
    shards = source_of(entry, split, fraction).shards(split)
    work = Work([ShardSlice(*each) for each in enumerate(shards)], 0)
    return Evaluation(model, settings.for_likelihood(model.spec.likelihood), work)


def read(entry: Entry) -> Measured:
    """Reads the numbers of a measured run."""
    store = Store(*open_filesystem(entry.folder))
    done = store.read_json(FOLDER, DONE)
    arrays = dict(np.load(io.BytesIO(read_bytes(store.filesystem, store.path(FOLDER, ARRAYS)))))
    ids = arrays.pop("ids").tolist()
    curve = {int(k): value for k, value in done["curve"].items()}
    return Measured(entry, ids, numbers=done["numbers"], curve=curve, **arrays)


def source_of(entry: Entry, split: Split, fraction: float | None = None) -> Source:
    """The images of a split from the shards that the run has read, or else from its original source.

    fraction: replaces the run's fraction of the training images. Raises UserError if the source changed since
    the training, because the run may have trained on images that are now in the test split.
    """
    store = Store(*open_filesystem(entry.folder))
    experiment = store.config()
    data, seed = experiment.data, experiment.seed
    shards = read_shards(store, split)
    if shards is not None and (split != "train" or fraction in (None, data.fraction)):
        return shards.source(data, seed)
    source = open_source(data.model_copy(update={"fraction": fraction or data.fraction}), seed)
    if source.stamp != store.read_json("data", MANIFEST)["stamp"]:
        raise UserError(f"the data of {entry.folder} have changed since its training; put them back")
    return source


def images_of(entry: Entry, split: Split) -> Rows:
    """All images of a split. Raises the errors of `source_of`."""
    return Rows.cat([shard.read() for shard in source_of(entry, split).shards(split)])


@torch.no_grad()
def curve_of(model: GenerativeModel, images: Tensor, seed: int) -> dict[int, float]:
    """k -> mean NLL of uint8 images (N, C, H, W). Each k uses the first k draws of one sequence."""
    generator = torch.Generator(model.device).manual_seed(noise_seed(seed, CURVE))
    x = binarized(images.to(model.device), model.spec.binarize, generator)
    bound, found = LogMeanExp(), {}
    for k in KS:
        while bound.count < k:
            bound.add(model.importance(x, min(K_CHUNK, k - bound.count), generator).log_w)
        found[k] = -float(bound.value.mean())
    return found


@torch.no_grad()
def flops(model: GenerativeModel, images: Tensor) -> int:
    """The number of floating-point operations of the bound with k = 1 for one image (1, C, H, W)."""
    generator = torch.Generator(model.device).manual_seed(0)
    x = binarized(images.to(model.device), model.spec.binarize, generator)
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:  # the counter fails if a trained parameter is a layer's input, as in DRAW
            parameter.requires_grad_(False)
        # The counter misses the fused attention of CPUs, but counts the two products of plain attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.importance(x, 1, generator)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def references(
    entry: Entry, settings: EvaluationSettings, extractor: ExtractorFile
) -> dict[str, dict[str, float]]:
    """Distances of all training images (`floor`) and of M images of noise (`ceiling`) from the test images.

    All images are binarized as for the model of `entry`.
    """
    model, seed = load_model(f"{entry.folder}/model"), settings.seed
    of_test, of_train = (_evaluation(entry, s, model, settings, 1.0) for s in ("test", "train"))
    real, train = (each.features(extractor)["real"] for each in (of_test, of_train))
    generator, shape = torch.Generator().manual_seed(noise_seed(seed, NOISE)), model.spec.image_shape
    noise = torch.randint(0, 256, (settings.samples or 0, *shape), generator=generator, dtype=torch.uint8)
    worker = Worker(model, of_test.settings, extractor=extractor)
    batches = enumerate(noise.split(BATCH))
    ceiling = torch.cat([worker.features(batch, (NOISE, number)) for number, batch in batches])
    return {
        name: all_distances(real, features, seed)
        for name, features in (("floor", train), ("ceiling", ceiling))
    }


def _shown(
    model: GenerativeModel, entry: Entry, settings: EvaluationSettings
) -> dict[str, NDArray[np.float32]]:
    """Some samples (means of p(x|z)), and the training image nearest to each."""
    generator = torch.Generator(model.device).manual_seed(settings.seed)
    samples = model.sample(SHOWN_SAMPLES, generator=generator, temperature=settings.temperature).cpu()
    train = torch.from_numpy(images_of(entry, "train").images)
    found = neighbours(samples, [train], 0, settings.seed)
    return {"samples": samples.numpy(), "nearest": to_float(found.nearest).numpy()}
