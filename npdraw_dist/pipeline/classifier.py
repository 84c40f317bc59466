"""Trains a classifier, whose features measure distances, and writes it as a TorchScript file.

Shapes: N images, B batch, C channels, H x W pixels, D features.
"""

import io
import json
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.outputs import require_writable_file, writing
from npdraw_dist.core.schedules import warmup_cosine
from npdraw_dist.core.storage import open_filesystem, write_bytes
from npdraw_dist.data.map_shards import map_shards
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.data.sources import open_source
from npdraw_dist.data.splits import Split
from npdraw_dist.measure.features import FACTS
from npdraw_dist.nn.classifier import Classifier
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.pipeline.classifier_settings import ExtractorSettings
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.training.feed import noise_seed
from npdraw_dist.training.launch import start_ray

BATCH = 64
STANDARD = 2048  # training images whose features are made mean 0 and variance 1
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.01


def train_classifier(settings: ExtractorSettings) -> dict[str, Any]:
    """Trains on the labelled images of the training split; writes `out` and returns its facts.

    Raises UserError if the data have no labels.
    """
    started = time.perf_counter()
    data = settings.data
    if data.shape[0] != 1:
        data = data.model_copy(update={"binarize": "none"})
    require_writable_file(settings.out)
    source = open_source(data, settings.seed)
    start_ray(settings.scale)
    images, labels = _labelled(source, "train", data.source)
    held, truth = _labelled(source, "valid", data.source, needed=False)
    classes = int(max(labels.max(), truth.max() if len(truth) else 0)) + 1
    if classes < 2:
        raise UserError(f"data.source {data.source} has one class only; a classifier needs two")
    torch.manual_seed(settings.seed)
    model = Classifier(data.shape, classes, settings.features)
    _fit(model, images, labels, data.binarize, settings)
    facts = {
        "name": f"classifier-{data.source}",
        "features": settings.features,
        "classes": classes,
        "binarize": data.binarize,
        "training_images": len(images),
        "images_seen": settings.images,
        "seed": settings.seed,
        "valid_accuracy": _accuracy(model, held, truth, data.binarize, settings.seed),
        "seconds": round(time.perf_counter() - started, 2),
    }
    _write(model, facts, settings.out)
    return facts


def _labelled(source: Source, split: Split, name: str, needed: bool = True) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) of the rows that have a label, read by Ray tasks."""
    found: dict[int, Rows] = {}
    items, folders = list(enumerate(source.shards(split))), [source.inputs().landmarks()]
    for result in map_shards(items, _read_labelled, folders=folders):
        if isinstance(result, UserError):
            raise result
        found[result[0]] = result[1]
    rows = [found[index] for index in sorted(found) if len(found[index])]
    if not rows:
        if needed:
            raise UserError(
                f"data.source {name} has no labels to train a classifier on; digits, mnist, cifar10, "
                "folders by class, tars with .cls and Parquet with a column label have"
            )
        return torch.zeros(0, 1, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    labels = [part.labels for part in rows if part.labels is not None]
    return torch.from_numpy(np.concatenate([part.images for part in rows])), torch.from_numpy(
        np.concatenate(labels)
    )


def _read_labelled(item: tuple[int, Shard]) -> tuple[int, Rows]:
    """(number of the shard, its rows that have a label)."""
    index, shard = item
    rows = shard.read()
    return index, rows.take([] if rows.labels is None else np.flatnonzero(rows.labels >= 0))


def _fit(
    model: Classifier, images: Tensor, labels: Tensor, binarize: str, settings: ExtractorSettings
) -> None:
    """Cross-entropy for settings.images images, batches drawn with a seed."""
    optimizer = AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(noise_seed(settings.seed, 0))
    with stage_progress("classifier", settings.images) as show:
        for seen in range(0, settings.images, BATCH):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * warmup_cosine(seen, settings.images, settings.images // 20)
            rows = torch.randint(len(images), (BATCH,), generator=generator)
            x = binarized(images[rows], binarize, generator)
            loss = F.cross_entropy(model.logits(x), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            show(min(seen + BATCH, settings.images))
    model.eval().standardize(binarized(images[:STANDARD], binarize, generator))


@torch.no_grad()
def _accuracy(model: Classifier, images: Tensor, labels: Tensor, binarize: str, seed: int) -> float | None:
    """The share of `images` that are classified correctly; None if there are no images."""
    if len(labels) == 0:
        return None
    generator = torch.Generator().manual_seed(noise_seed(seed, 1))
    right = 0
    for part, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        right += int((model.logits(binarized(part, binarize, generator)).argmax(1) == truth).sum())
    return right / len(labels)


def _write(model: Classifier, facts: dict[str, Any], out: str) -> None:
    script = torch.jit.script(model)
    buffer = io.BytesIO()
    torch.jit.save(script, buffer, _extra_files={FACTS: json.dumps(facts)})
    filesystem, path = open_filesystem(out)
    with writing(out):
        write_bytes(filesystem, path, buffer.getvalue())
