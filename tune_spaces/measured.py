"""What `npdraw report` measures of a run: bounds of each test image, curve of k, distances, edits and cost.

A run's numbers are in its folder `comparison/`, so a second start measures only what is missing. Noise is
seeded by the batch: all runs see the same binarised pixels. Shapes: N images, M samples, D features, k draws.
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
from npdraw_dist.config.registry import title_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import to_float
from npdraw_dist.core.storage import open_filesystem, read_bytes, write_bytes
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Source, open_source
from npdraw_dist.data.splits import Split
from npdraw_dist.evaluate.edits import EDITS, measure_edits
from npdraw_dist.evaluate.measure import Measure
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.bounds import LogMeanExp
from npdraw_dist.measure.distances import all_distances, neighbours
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.measure.metrics import group
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.pipeline.inputs import read_shards
from npdraw_dist.pipeline.models import load_model
from npdraw_dist.pipeline.scores import BATCH, K_CHUNK
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.feed import noise_seed

FOLDER, ARRAYS = "comparison", "arrays.npz"
DONE = "numbers.json"  # written last
KS = (1, 5, 10, 50, 100, 500, 1000, 5000)  # of the curve
CURVE_IMAGES = 16
SHOWN_SAMPLES = 12
AT_ONCE = 64  # samples or images whose features are computed at once
REAL, DRAWN, CURVE, NOISE = 2**32 - 5, 2**32 - 6, 2**32 - 7, 2**32 - 8  # keep the seeds apart


@dataclass(frozen=True)
class Entry:
    """A run that is measured.

    kind: of its model, or a variant (`registry.kind_of`). role: `seed`, of several, or `longest`, trained
    until it stopped improving. facts: what the sweep recorded of it: images, core_seconds, valid_nll,
    still_improving. leading: the first seed of its kind and fraction, of which curves and samples are shown.
    """

    folder: str
    kind: str
    fraction: float
    seed: int
    role: str
    facts: Mapping[str, Any]
    leading: bool = False

    @property
    def title(self) -> str:
        return title_of(self.kind)


@dataclass(frozen=True)
class Measured:
    """The numbers of a run. ids, nll_iwae, elbo: of N images, in nats. curve: k -> NLL of some images."""

    entry: Entry
    ids: list[str]
    nll_iwae: NDArray[np.float64]
    elbo: NDArray[np.float64]
    numbers: Mapping[str, float]
    curve: Mapping[int, float] = field(default_factory=dict)
    samples: NDArray[np.float32] | None = None
    nearest: NDArray[np.float32] | None = None


def measure(entry: Entry, settings: EvaluationSettings, extractor: ExtractorFile | None) -> str:
    """Measures a run, unless that is done; returns its folder."""
    store, seed = Store(*open_filesystem(entry.folder)), settings.seed
    if store.has(FOLDER, DONE):
        return entry.folder
    model = load_model(f"{entry.folder}/model")
    of_run = Measure(model, settings.for_likelihood(model.spec.likelihood), extractor=extractor)
    rows = images_of(entry, "test")
    images = torch.from_numpy(rows.images)
    scores = [of_run.scores(batch, (0, number)) for number, batch in enumerate(images.split(BATCH))]
    arrays: dict[str, Any] = {"ids": np.array(rows.ids)}
    arrays |= {name: torch.cat([part[name] for part in scores]).numpy() for name in ("nll_iwae", "elbo")}
    terms = [name for name in group("term") if name in scores[0]]
    numbers: dict[str, float] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops(model, images[:1]),
        **{name: float(entry.facts[name]) for name in ("core_seconds", "images", "valid_nll")},
        **{name: float(torch.cat([s[name] for s in scores]).mean()) for name in terms},
    }
    if model.spec.likelihood != "bernoulli":  # bits per dimension of binary data are not customary
        numbers["dimensions"] = images[0].numel()
    if extractor is not None:
        numbers |= _distances(of_run, images, settings)
        if model.has_regions:
            numbers |= measure_edits(model, images, EDITS, seed, extractor.open(of_run.device))
    curve: dict[int, float] = {}
    if entry.leading:
        curve = curve_of(model, images[:CURVE_IMAGES], seed)
        arrays |= _shown(model, entry, settings)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    store.filesystem.create_dir(store.path(FOLDER), recursive=True)
    write_bytes(store.filesystem, store.path(FOLDER, ARRAYS), file.getvalue())
    store.write_json({"numbers": numbers, "curve": curve}, FOLDER, DONE)
    return entry.folder


def read(entry: Entry) -> Measured:
    """The numbers of a run that was measured."""
    store = Store(*open_filesystem(entry.folder))
    done = store.read_json(FOLDER, DONE)
    arrays = dict(np.load(io.BytesIO(read_bytes(store.filesystem, store.path(FOLDER, ARRAYS)))))
    ids = arrays.pop("ids").tolist()
    curve = {int(k): value for k, value in done["curve"].items()}
    return Measured(entry, ids, numbers=done["numbers"], curve=curve, **arrays)


def source_of(entry: Entry, split: Split, fraction: float | None = None) -> Source:
    """The images of a split of a run's data: those that it has read, else those of the source.

    fraction: in place of the run's own, of its training images. Raises UserError if the source changed since
    the training: test images could be such as the run saw.
    """
    store = Store(*open_filesystem(entry.folder))
    experiment = store.config()
    data, seed = experiment.data, experiment.seed
    shards = read_shards(store, split)
    if shards is not None and (split != "train" or fraction in (None, data.fraction)):
        return shards.source(data, seed)
    source = open_source(data.model_copy(update={"fraction": fraction or data.fraction}), seed)
    if source.stamp != store.read_json("data", MANIFEST)["stamp"]:
        raise UserError(f"the data of {entry.folder} changed since its training; put them back")
    return source


def images_of(entry: Entry, split: Split, fraction: float | None = None) -> Rows:
    """All images of a split of a run's data. fraction, errors: as of `source_of`."""
    return Rows.cat([shard.read() for shard in source_of(entry, split, fraction).shards(split)])


@torch.no_grad()
def curve_of(model: GenerativeModel, images: Tensor, seed: int) -> dict[int, float]:
    """uint8 images (N, C, H, W) -> k -> mean NLL: the bound of the first k of the same draws."""
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
    """Floating-point operations of the bound at k = 1 of one image (1, C, H, W): encoder, prior, decoder."""
    generator = torch.Generator(model.device).manual_seed(0)
    x = binarized(images.to(model.device), model.spec.binarize, generator)
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:  # the counter fails where one is a layer's input, as DRAW's first state is
            parameter.requires_grad_(False)
        # The fused attention of CPUs is unknown to the counter; the plain one is two products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.importance(x, 1, generator)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def _distances(measure: Measure, images: Tensor, settings: EvaluationSettings) -> dict[str, float]:
    """Distances of samples to uint8 images (N, C, H, W)."""
    count = settings.samples or 0
    starts = enumerate(range(0, count, AT_ONCE))
    samples = [measure.sample_features(min(AT_ONCE, count - at), (DRAWN, number)) for number, at in starts]
    return all_distances(_real_features(measure, images, REAL), torch.cat(samples), settings.seed)


def _real_features(measure: Measure, images: Tensor, stream: int) -> Tensor:
    """uint8 (N, C, H, W) -> (N, D)."""
    batches = enumerate(images.split(AT_ONCE))
    return torch.cat([measure.real_features(batch, (stream, number)) for number, batch in batches])


def references(
    entry: Entry, settings: EvaluationSettings, extractor: ExtractorFile
) -> dict[str, dict[str, float]]:
    """`floor`: all training images against the test images. `ceiling`: M images of uniform noise.

    The images are binarized as for the model of `entry`.
    """
    model, seed = load_model(f"{entry.folder}/model"), settings.seed
    measure = Measure(model, settings.for_likelihood(model.spec.likelihood), extractor=extractor)
    test, train = (torch.from_numpy(images_of(entry, split, 1.0).images) for split in ("test", "train"))
    generator, shape = torch.Generator().manual_seed(noise_seed(seed, NOISE)), test.shape[1:]
    noise = torch.randint(0, 256, (settings.samples or 0, *shape), generator=generator, dtype=torch.uint8)
    real = _real_features(measure, test, REAL)
    return {
        name: all_distances(real, _real_features(measure, images, NOISE), seed)
        for name, images in (("floor", train), ("ceiling", noise))
    }


def _shown(
    model: GenerativeModel, entry: Entry, settings: EvaluationSettings
) -> dict[str, NDArray[np.float32]]:
    """Mean images of some samples, and the nearest training image of each."""
    generator = torch.Generator(model.device).manual_seed(settings.seed)
    samples = model.sample(SHOWN_SAMPLES, generator, settings.temperature).cpu()
    train = torch.from_numpy(images_of(entry, "train").images)
    found = neighbours(samples, [train], 0, settings.seed)
    return {"samples": samples.numpy(), "nearest": to_float(found.nearest).numpy()}
