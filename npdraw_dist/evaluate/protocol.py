"""Measures a model on a split of a data set, and records how it was measured (the protocol)."""

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.config.spec import Spec
from npdraw_dist.data.parses import Conditions
from npdraw_dist.data.rows import check_rejects
from npdraw_dist.data.shards import Source
from npdraw_dist.data.splits import Split
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.evaluate.work import SAMPLES, Evaluation, plan_work, pool_of
from npdraw_dist.measure.distances import KERNEL_SUBSET_SIZE, KERNEL_SUBSETS, NEIGHBOURS, require_enough
from npdraw_dist.measure.features import ExtractorFile, find_extractor
from npdraw_dist.measure.metrics import METRICS, format_metrics, group
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.inputs import find_run, open_images, record_opening_of, require_split
from npdraw_dist.pipeline.sample import reconstructions
from npdraw_dist.pipeline.scores import BATCH, K_CHUNK
from npdraw_dist.pipeline.trained_models import load_model, read_spec
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.made_by import command_line
from npdraw_dist.system.storage import open_filesystem, sha256, write_bytes, write_text, writing
from npdraw_dist.system.version import __version__


def with_defaults(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to `flags` the data settings and the seed of the model's training that the user did not give.

    These defaults come from the model's run, or else from the model's config.json. If the flags name another
    data source, no data setting of the training is used.
    """
    run, spec = find_run(flags["model"]), read_spec(flags["model"])
    if run is not None:
        own, seed = run[1]["data"], run[1]["seed"]
    elif spec.data is not None:
        own, seed = spec.data.data(spec.image_shape).model_dump(exclude_unset=True), spec.data.seed
    else:
        return dict(flags)
    data = dict(flags.get("data", {}))
    same = data.get("source") in (None, own["source"])
    return {"seed": seed, **flags, "data": {**own, **data} if same else data}


def images_in(source: Source, split: Split, needed: int) -> int:
    """The number of images in a split, or a lower bound if the source does not state the number.

    For the bound, shards are read until they have more than `needed` images, and more than the NEIGHBOURS
    that precision and recall need.
    """
    if (images := source.count(split)) is not None:
        return images
    images = 0
    for shard in source.shards(split):
        images += len(shard.read())
        if images > max(needed, NEIGHBOURS):
            break
    return images


def evaluate(settings: EvaluationSettings, sized_pool: bool, out: str) -> tuple[dict[str, Any], list[str]]:
    """Measures a model; writes the numbers and their `protocol` to `out`; returns both and the written paths.

    For NP-DRAW, also writes a picture of reconstructions. sized_pool: use at most scale.num_workers actors.
    Raises UserError if the settings do not fit the model or its data.
    """
    started, scale, split = time.perf_counter(), settings.scale, settings.split
    model = load_model(settings.model)
    settings = settings.for_likelihood(model.spec.likelihood)
    data = _checked_data(settings, model.spec)
    file = find_extractor(settings.fid_weights, settings.extractor, model.spec.image_shape)
    split_seed = require_split(settings.model, model.spec, data, settings.split_seed)
    source, inputs = open_images(settings.model, data, split_seed, split)
    shards, total = source.shards(split), source.count(split)
    if not shards:
        raise UserError(f"the split {split!r} of the data has no image")
    if file is not None:  # checked before the likelihood is measured, which may take hours
        images = images_in(source, split, file.dimensions)
        real = min(images, settings.images or images)
        require_enough(real, settings.samples or real, file.dimensions)
    if settings.edits and not model.has_regions:
        raise UserError(f"a model of kind {model.spec.kind} cannot edit a region; leave out --edits")
    if not scale.in_process:
        from npdraw_dist.distributed.start import start_ray

        start_ray(scale)
    pool = pool_of(scale, sized_pool)
    if split == "test":
        record_opening_of(settings.model, "evaluate")
    work = plan_work(shards, total, settings.images, pool.size or 1)
    conditions = None
    if isinstance(model, NPDraw) and model.vocabulary.kind != "none":
        conditions = Conditions(model.vocabulary, source.facts()["classes"])
    evaluation = Evaluation(model, settings, work, pool, conditions)
    result, ids = evaluation.likelihood()
    if settings.images is None:
        check_rejects(result["rejected"], result["n"] + result["rejected"], data, listed=False)
    protocol = {
        **_protocol(settings, model, source, inputs),
        "split_seed": split_seed,
        "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        "distance": "none: neither --fid-weights nor --extractor was given",
    }
    if file is not None:
        result |= evaluation.distances(settings.samples or result["n"], file)
        protocol["distance"] = _distance_protocol(settings, file, result)
    if settings.edits:
        result |= evaluation.edits(settings.edits, file)
        protocol["edits"] = f"{settings.edits} regions of one image of the split on another"
    result |= {"split": split, "protocol": protocol, "made_by": made_by()}
    result["made_by"] |= {
        "seconds": round(time.perf_counter() - started, 2),
        "actors": pool.size,
        "gpu": pool.gpus > 0,
        "torch": torch.__version__,
    }
    with writing(out):
        write_text(*open_filesystem(out), json.dumps(result, indent=2) + "\n")
    if not isinstance(model, NPDraw):
        return result, [out]
    picture = f"{out.removesuffix('.json')}.png"
    first = next(rows.images for shard in shards if len(rows := shard.read()))
    content = reconstructions(model, torch.from_numpy(first))
    write_bytes(*open_filesystem(picture), content)
    return result, [out, picture]


def made_by() -> dict[str, Any]:
    """The command of this process, the date (UTC) and the package's version, to record in a result."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command_line(), "date": date, "version": __version__}


def _checked_data(settings: EvaluationSettings, spec: Spec) -> DataConfig:
    """The data settings with the model's binarization. Raises UserError if they do not fit the model."""
    data = settings.data
    if data.shape != spec.image_shape:
        raise UserError(
            f"--model {settings.model} takes images {spec.image_shape}, but data.source {data.source} has "
            f"{data.shape}"
        )
    if "binarize" in data.model_fields_set and data.binarize != spec.binarize:
        raise UserError(f"--data.binarize is {data.binarize}, but the model was trained with {spec.binarize}")
    return data.model_copy(update={"binarize": spec.binarize})


def _protocol(
    settings: EvaluationSettings, model: GenerativeModel, source: Source, inputs: str | None
) -> dict[str, Any]:
    """How the numbers are measured. inputs: digest of the source's training images; None if unknown."""
    filesystem, path = open_filesystem(settings.model)
    known = None if model.spec.data is None else model.spec.data.inputs
    return {
        "model": settings.model,
        "model_sha256": sha256(filesystem, f"{path}/model.safetensors"),
        "kind": model.spec.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": dict(source.facts()),
        "split": settings.split,
        "images": settings.images or "all",
        "binarize": model.spec.binarize,
        "likelihood": model.spec.likelihood,
        "nll": f"IWAE of {settings.k} sampled log-ratios an image",
        "noise": f"seeded by shard, batch of {BATCH} and {K_CHUNK} importance samples; nothing is padded",
        "seed": settings.seed,
        "inputs": inputs,
        "data_of_training": "unknown" if None in (inputs, known) else "same" if inputs == known else "other",
    }


def _distance_protocol(
    settings: EvaluationSettings, file: ExtractorFile, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    size = min(KERNEL_SUBSET_SIZE, numbers["n_real"], numbers["n_generated"])
    return {
        "extractor": file.name,
        "extractor_kind": file.kind,
        "extractor_sha256": file.sha256,
        **{name: numbers[name] for name in ("features", "n_real", "n_generated")},
        **{name: getattr(settings, name) for name in ("split", "pixels", "temperature", "seed")},
        "resize": file.resize,
        "batch": SAMPLES,
        "kernel": f"cubic, {KERNEL_SUBSETS} subsets of {size}",
        "precision_recall": f"nearest {NEIGHBOURS} neighbours",
    }


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The result and its protocol as a few lines of text."""
    protocol = result["protocol"]
    lines = [
        f"{result['n']:,} images of {protocol['data']['source']} {result['split']}, IWAE {result['k']}, "
        f"binarize {protocol['binarize']}, seed {protocol['seed']}",
        format_metrics(result, *(name for name in METRICS if name not in group("edit"))),
    ]
    if edits := format_metrics(result, *group("edit")):
        lines.append(f"squared errors of {edits}")
    if "distance" in result:
        how = protocol["distance"]
        lines.append(
            f"{result['distance']}: {how['n_generated']:,} samples ({how['pixels']}) against "
            f"{how['n_real']:,} images by {how['features']} features, resize {how['resize']}, SHA-256 "
            f"{how['extractor_sha256']}"
        )
    return lines
