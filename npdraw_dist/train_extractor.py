"""npdraw train-extractor: trains a small classifier whose features measure distances between images."""

import io
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.schema import DataConfig, ScaleConfig, Seed
from npdraw_dist.system.errors import UserError

if TYPE_CHECKING:  # torch and Ray take seconds to import, so the flags are checked first
    from npdraw_dist.data.rows import Rows
    from npdraw_dist.data.shards import Shard, Source
    from npdraw_dist.data.splits import Split
    from npdraw_dist.nn.classifier import Labelled


class TrainExtractor(Command):
    """Trains a classifier on a labelled data set, for `npdraw evaluate --extractor OUT`.

    Distances between the classifier's features are reported under its name, never as FID.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("out", "images", "features", "seed", "data.source", "data.path", "data.image_size"),
        *("data.channels", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--out digits.pt",
        "--data.source fashion_mnist --data.path FOLDER --images 300000 --out fashion.pt",
    )

    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()
    seed: Seed = Field(0, description="seed of splits, weights and batches")
    images: PositiveInt = Field(100_000, description="training budget in images")
    features: PositiveInt = Field(
        32, description="number of features D; a Frechet distance needs more than D images"
    )
    out: str = Field(description="the TorchScript file to write, such as classifier.pt")


def train_extractor(settings: TrainExtractor) -> dict[str, Any]:
    """Trains on labelled images, writes the file `out` and returns the facts that the file contains.

    Raises UserError if there are no labels, or only one class.
    """
    import torch

    from npdraw_dist.data.shards import open_source
    from npdraw_dist.distributed.start import placed, start_ray
    from npdraw_dist.measure.features import FACTS
    from npdraw_dist.nn.classifier import Classifier, accuracy, fit
    from npdraw_dist.pipeline.progress import stage_progress
    from npdraw_dist.system.process import local_device
    from npdraw_dist.system.storage import open_filesystem, require_writable, write_bytes, writing
    from npdraw_dist.training.feed import noise_seed

    started, data = time.perf_counter(), settings.data
    if data.shape[0] != 1:
        data = data.model_copy(update={"binarize": "none"})
    require_writable(settings.out)
    source = open_source(data, settings.seed)
    scale = placed(settings.scale)
    device = local_device(scale.use_gpu)
    if not scale.in_process:
        start_ray(scale)
    train, valid = (_labelled(source, split, data) for split in ("train", "valid"))
    if not len(train.images):
        raise UserError(
            f"data.source {data.source} has no labels for a classifier; take digits, mnist, cifar10, "
            "folders by class, tars with .cls or Parquet with a column label"
        )
    classes = int(max(train.labels.max(), valid.labels.max() if len(valid.labels) else 0)) + 1
    if classes < 2:
        raise UserError(f"data.source {data.source} has one class only; a classifier needs two")
    torch.manual_seed(settings.seed)
    model = Classifier(data.shape, classes, settings.features).to(device)
    generators = [torch.Generator().manual_seed(noise_seed(settings.seed, number)) for number in (0, 1)]
    with stage_progress("classifier", settings.images) as show:
        fit(model, train, settings.images, generators[0], show)
    facts = {
        "name": f"classifier-{data.source}",
        "features": settings.features,
        "classes": classes,
        "binarize": data.binarize,
        "training_images": len(train.images),
        "images_seen": settings.images,
        "seed": settings.seed,
        "valid_accuracy": accuracy(model, valid, generators[1]),
        "seconds": round(time.perf_counter() - started, 2),
    }
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model.cpu()), buffer, _extra_files={FACTS: json.dumps(facts)})
    filesystem, path = open_filesystem(settings.out)
    with writing(settings.out):
        write_bytes(filesystem, path, buffer.getvalue())
    return facts


def _labelled(source: "Source", split: "Split", data: DataConfig) -> "Labelled":
    """The rows of a split that have a label, read in Ray tasks if Ray is running."""
    import torch

    from npdraw_dist.data.rows import RowBuilder, Rows
    from npdraw_dist.distributed.tasks import map_items
    from npdraw_dist.nn.classifier import Labelled

    found = dict(map_items(list(enumerate(source.shards(split))), _read_labelled))
    rows = Rows.cat([RowBuilder(data.shape).rows(), *(found[number] for number in sorted(found))])
    return Labelled(torch.from_numpy(rows.images), torch.from_numpy(rows.known_labels()), data.binarize)


def _read_labelled(item: "tuple[int, Shard]") -> "tuple[int, Rows]":
    """(number of the shard, its rows that have a label)."""
    rows = item[1].read()
    return item[0], rows.take((rows.known_labels() >= 0).nonzero()[0])


def main(argv: Sequence[str]) -> None:
    settings = validate(TrainExtractor, parse_flags(TrainExtractor, "npdraw_dist.train_extractor", argv))
    facts = train_extractor(settings)
    accuracy = facts["valid_accuracy"]
    right = "no validation images" if accuracy is None else f"{accuracy:.1%} of validation images right"
    print(f"{settings.out}: {facts['name']}, {facts['features']} features, {right}, {facts['seconds']} s")


if __name__ == "__main__":
    run_command(main)
