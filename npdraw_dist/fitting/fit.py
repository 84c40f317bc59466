"""Defines `npdraw_dist.fit`, which trains a model on a folder, an array, a data set or a list of images.

Shapes: N images, C channels, H x W image.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Real
from pathlib import Path
from typing import Any

from pyarrow import fs

from npdraw_dist.config.load import merge, read_preset, resolve
from npdraw_dist.config.networks import CONDITIONS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.section import sides, size_of
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.vocabulary import VOCABULARIES
from npdraw_dist.data.rows import Rows
from npdraw_dist.fitting.fit_images import LARGEST_CANVAS, Labels, Looked, canvas_scale, look, reasons
from npdraw_dist.fitting.fit_source import given
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.probe import budgets
from npdraw_dist.pipeline.progress import console, results
from npdraw_dist.pipeline.run import start
from npdraw_dist.pipeline.stage import Watcher
from npdraw_dist.pipeline.store import CONFIG, Store
from npdraw_dist.pipeline.trained_models import BANK, load_model
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.model_files import WEIGHTS
from npdraw_dist.system.storage import is_file, open_filesystem, require_apart, sha256, write_bytes
from npdraw_dist.training.metrics_log import read_metrics

BINARY, NEAR_BINARY = 0.02, 0.3  # largest shares of grey pixels in binary and in nearly binary images
PATCHES_OF_A_PART = 50
TRAINED = ("prior", "vae")  # the stages that train networks
BUDGETS = ("images", "relaxed_images", "plain_images")  # settings of these stages, each a number of images


def fit(
    images: Any,
    *,
    labels: Labels = None,
    valid: Any = None,
    valid_labels: Labels = None,
    preset: str | None = None,
    image_size: int | str | None = None,
    name: str | None = None,
    storage: str | Path | None = None,
    num_workers: int | str = 0,
    ray: bool = False,
    minutes: float | None = None,
    init: NPDraw | str | Path | None = None,
    bank: PartBank | str | Path | Mapping[str, Any] | None = None,
    callbacks: Sequence[Watcher] = (),
    **settings: Any,
) -> NPDraw:
    """Trains an NP-DRAW model on `images`; returns it in eval mode on the CPU, with its `history`.

    images: a folder of pictures that every node of a cluster can read; an array or tensor (N, H, W),
    (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1]; a Ray Dataset with a column `image`, which its
    cluster writes to the storage; or a sequence, such as a torch Dataset, of arrays, tensors, PIL images,
    paths, or dicts or tuples with one of these. `fit` chooses sizes, likelihood and preset from up to 256
    pictures of a folder, 1,000 rows of a Ray Dataset, or all images of another kind, and prints its choice.
    Unreadable images are skipped and listed in data/rejects.jsonl of the run.

    labels: a class (number or name) or words for each image, for `NPDraw.draw(condition=)`. Unless
    `prior.condition` is set, texts are words if more than half are distinct, else class names. A missing
    label is None, NaN, or -1 among numbers. The labels of a folder are "folders" (a picture's top folder is
    its class), "names" (the words of the file names), "none", or the path of a CSV file with the columns
    `file`, below the folder, and `label` or `words`. Without labels they are "folders" if two have 3 pictures
    or more and no settings say otherwise. Classes and words of fewer than 3 pictures are left out. valid,
    valid_labels: validation images of any of these kinds, and their labels. Without them, a tenth of the
    images is held out.

    image_size: side in pixels, up to 128, to which pictures are resized, or HEIGHTxWIDTH as "48x64". They are
    padded to that shape before, or cropped if `data.fit` is crop. name, storage: name and parent of the run
    folder, which `npdraw train` or the same call resumes; without both the folder is temporary. num_workers,
    ray: 0 and False train in this process; any other value trains on Ray, on the cluster at RAY_ADDRESS.
    minutes: approximate time of training in this process; without it, a stage trains on 24,000 images, or on
    the preset's number if the pictures are nearly binary. init: a trained model, or an argument of
    `npdraw_dist.load`; the run starts from its network and parts. bank: a part bank to draw with, the path of
    a bank from `npdraw bank`, or a mapping with the settings of the section `bank`. callbacks: called as
    `callback(row, stage)` with each row of training or validation metrics and its `images_seen`; an exception
    ends the training, and the same call resumes a named run. settings: flags of `npdraw train`, as in
    `fit(images, vae={"images": 60_000})` or `fit(images, **{"vae.images": 60_000})`. Raises UserError on
    images or settings that cannot be used.
    """
    nested = _nested({**settings, "bank": bank} if isinstance(bank, Mapping) else settings)
    if image_size is not None:
        nested = merge(nested, {"data": {"image_size": image_size}})
    _require_settings(nested.get("data", {}), minutes)
    with ExitStack() as stack:
        if temporary := name is None and storage is None:
            storage = stack.enter_context(tempfile.TemporaryDirectory(prefix="npdraw-"))
        root, called = "runs" if storage is None else str(storage), "fit" if name is None else name
        run = Store.open(root, called)
        for folder in (images, valid):
            if isinstance(folder, str | Path) and "://" not in str(folder):
                require_apart(str(folder), run.filesystem, run.root, "the run", "storage")
        nested = merge({"init": _start_from(init, bank, run, f"{root.rstrip('/')}/{called}")}, nested)
        looked = look((images, labels), (valid, valid_labels), nested, _can_be_told(preset, nested))
        experiment = _experiment(looked, preset, nested, num_workers or int(ray), minutes, run)
        source, stages = given(looked, experiment), experiment.stage_names
        store = start(experiment, root, called, stages, not temporary, watchers=callbacks, given=source)
        return _trained(store)


def _require_settings(data: Mapping[str, Any], minutes: Any) -> None:
    """Raises UserError if `data` sets a value that the images decide, or if a number is not above 0."""
    if taken := {"source", "path", "channels"} & data.keys():
        raise UserError(f"data.{min(taken)} follows from the images; leave it out")
    if minutes is not None and not (isinstance(minutes, Real) and float(minutes) > 0):
        raise UserError(f"minutes is {minutes!r}; it must be a number above 0")
    if (size := data.get("image_size")) is not None:
        try:
            sides(size)
        except ValueError as error:
            raise UserError(f"image_size is {error}") from None


def _can_be_told(preset: str | None, nested: Mapping[str, Any]) -> bool:
    """Whether the settings leave open what the prior is conditioned on."""
    given = merge({} if preset is None else read_preset(preset), nested)
    own = given.get("model", {}).get("kind", "npdraw") == "npdraw" and given["init"].get("model") is None
    return own and "condition" not in given.get("prior", {})


def _experiment(
    looked: Looked,
    preset: str | None,
    nested: Mapping[str, Any],
    workers: int | str,
    minutes: float | None,
    run: Store,
) -> Experiment:
    """Chooses and prints the run's settings. The user's `nested` settings override the automatic choice."""
    if looked.condition is not None:
        nested = merge({"prior": {"condition": looked.condition}}, nested)
    suiting, chosen = _chosen(looked, nested, workers)
    preset = preset or suiting
    experiment = resolve(preset, None, merge(chosen, nested))
    if not experiment.has_parts:
        kind = experiment.model.kind
        raise UserError(
            f"fit trains NP-DRAW, and the model is of kind {kind}; use npdraw train --model.kind {kind}"
        )
    if looked.dataset is None:
        _require_condition(experiment, looked.pictures, looked.classes)
    if minutes is not None:
        _require_probe(experiment, nested)
        found = _budgets(experiment, minutes, run)
        experiment = resolve(preset, None, merge(chosen, found, nested))
    _say(experiment, preset, looked)
    return experiment


def _chosen(looked: Looked, nested: Mapping[str, Any], workers: int | str) -> tuple[str, dict[str, Any]]:
    """Chooses preset and settings for the images. nested: the user's settings, which limit the choice."""
    preset, chosen = suited(looked.pictures, looked.count)
    if nested["init"].get("model") is not None:  # the model decides the network
        budgets = {
            stage: {k: v for k, v in chosen.get(stage, {}).items() if k in BUDGETS} for stage in TRAINED
        }
        chosen = {**budgets, **{name: chosen[name] for name in ("data", "train", "eval", "scale")}}
        del chosen["data"]["binarize"]
    if nested["init"].get("bank") is not None:
        chosen.pop("bank", None)  # the bank decides the number of parts
    data: dict[str, Any] = {"source": "given"}
    if looked.dataset is None:
        data["max_bad_fraction"] = 1.0  # any number of unreadable files is skipped
    return preset, merge(chosen, {"data": data, "scale": {"num_workers": workers}})


def _trained(store: Store) -> NPDraw:
    """Loads the model of a finished run and adds its history of metrics."""
    with store.reading("model") as folder:
        model = load_model(str(folder))
    assert isinstance(model, NPDraw)
    stages = [stage for stage in TRAINED if store.has(stage)]
    model.history = {stage: read_metrics(store.filesystem, store.path(stage)) for stage in stages}
    return model


def _require_probe(experiment: Experiment, nested: Mapping[str, Any]) -> None:
    """Raises UserError if `minutes` cannot be turned into budgets, or if `nested` settings state budgets."""
    if not experiment.scale.in_process:
        raise UserError("minutes is for a training in this process; leave out num_workers and ray")
    if sections := [stage for stage in TRAINED if "images" in nested.get(stage, {})]:
        raise UserError(f"minutes decides {sections[0]}.images; leave one of them out")


def _require_condition(experiment: Experiment, pictures: Rows, classes: Sequence[str]) -> None:
    """Raises UserError if the prior takes a condition and no image has a class or words to condition on."""
    if not experiment.takes_condition or experiment.prior.vocabulary:
        return
    kind = experiment.prior.condition
    column = VOCABULARIES[kind].column
    named = column == "label" and len(classes) > 0
    if not named and all(value in (-1, "") for value in pictures.values(column)):
        entries = CONDITIONS[kind].entries
        raise UserError(f"prior.condition is {kind}, and the images have no {entries}; give labels")


def _start_from(
    init: NPDraw | str | Path | None,
    bank: PartBank | str | Path | Mapping[str, Any] | None,
    run: Store,
    where: str,
) -> dict[str, str]:
    """The section `init` of the settings. A model or bank in memory is first saved beside the run `where`."""
    found = dict[str, str]()
    if isinstance(init, NPDraw):
        found["model"] = _beside(run, where, "init", WEIGHTS, init.save_pretrained)
    elif isinstance(init, str | Path):
        found["model"] = str(init)
    elif init is not None:
        raise UserError(f"init is a {type(init).__name__}; give an NP-DRAW model, or the path of one")
    if isinstance(bank, PartBank):
        found["bank"] = _beside(run, where, "bank", BANK, lambda folder: bank.save(folder / BANK))
    elif isinstance(bank, str | Path):
        found["bank"] = str(bank)
    return found


def _beside(run: Store, where: str, what: str, file: str, save: Callable[[Path], object]) -> str:
    """Saves a run's initial model or bank to a folder beside the run; returns the path or URI of the folder.

    The folder's name has a hash of the content, so calls with the same run name never overwrite each other.
    where: the path or URI of the run. Raises UserError if the run began with another model or bank.
    """
    with tempfile.TemporaryDirectory() as local:
        save(Path(local))
        content = sha256(fs.LocalFileSystem(), f"{local}/{file}")
        if run.has(CONFIG) and (began := run.config().init.sha256) != content:
            began_with = "without this" if began is None else "with another"
            raise UserError(f"the run {run.name} began {began_with} {what} ({file}); take another name")
        folder = f"{where}-{what}-{content[:12]}"
        filesystem, root = open_filesystem(folder)
        if not is_file(filesystem, f"{root}/{file}"):
            # `file` is written last, so its presence shows that all files are complete.
            for path in sorted(Path(local).iterdir(), key=lambda path: path.name == file):
                write_bytes(filesystem, f"{root}/{path.name}", path.read_bytes())
    return folder


def _budgets(experiment: Experiment, minutes: float, run: Store) -> dict[str, Any]:
    """The settings with which training takes about `minutes`. A resumed run keeps its budgets."""
    if not run.has(CONFIG):
        return budgets(experiment, minutes)
    console.print(f"fit: {run.shown()} resumes with the budgets that it began with; minutes has no effect")
    names = {"prior": {"images"}, "vae": set(BUDGETS), "train": {"eval_every_images"}}
    return run.config().model_dump(include=names)


def _say(experiment: Experiment, preset: str, looked: Looked) -> None:
    channels, height, width = experiment.data.shape
    kind, shape = "colour" if channels == 3 else "grey", "" if height == width else " (height x width)"
    parts = f", {experiment.bank.size} parts" if "bank" in experiment.stage_names else ""
    console.print(
        f"fit: {looked.count:,} {kind} images of {height}x{width}{shape} on {experiment.grid.background}; "
        f"preset {preset}, likelihood {experiment.vae.likelihood}, binarize {experiment.data.binarize}{parts}"
    )
    if looked.labels is not None:
        console.print(f"fit: {looked.labels.line()}", markup=False, highlight=False)
    every = [looked.pictures] if looked.validation is None else [looked.pictures, looked.validation]
    if skipped := [reject for rows in every for reject in rows.rejects]:
        among = f"{sum(map(len, every)) + len(skipped):,}"
        seen = "looked at " if looked.folder or looked.dataset is not None else ""
        line = f"{len(skipped):,} of {among} pictures {seen}are skipped ({reasons(skipped)})"
        results.print(f"fit: warning: {line}", markup=False)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"vae.images": 5} or {"vae": {"images": 5}} -> {"vae": {"images": 5}}. Raises UserError otherwise."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, dot, field = key.partition(".")
        if not dot and not isinstance(value, Mapping) and key != "seed":
            raise UserError(f"{key} is no section of settings; a section is written vae={{'images': 60_000}}")
        nested = merge(nested, {section: {field: value} if dot else value})
    return nested


def suited(pictures: Rows, count: int | None = None) -> tuple[str, dict[str, Any]]:
    """The preset for `count` images like `pictures`, and its overrides. Raises UserError on a bad size."""
    shown, channels, height, width = pictures.images.shape
    count, size = count or shown, size_of(height, width)
    scale = canvas_scale(height, width)
    if scale is None:
        raise UserError(
            f"image_size {size} fits no canvas of at most {LARGEST_CANVAS}; take 32, 64, 96 or 128"
        )
    data = {"image_size": size, "channels": channels, "binarize": "none", "test_fraction": 0.0}
    pixels = pictures.images
    edges = float(pixels[..., [0, -1], :].mean() + pixels[..., [0, -1]].mean()) / 2
    grid = {"downscale": scale, "background": "white" if edges > 127 else "black"}
    shades = float(((pixels > 25) & (pixels < 230)).mean())  # share of values neither near 0 nor near 255
    own: dict[str, Any]
    if channels == 1 and shades < NEAR_BINARY:
        preset, parts, own = "digits", 100, {"vae": {"likelihood": "bernoulli"}}
        data["binarize"] = "threshold" if shades < BINARY else "dynamic"
    else:
        preset, parts = ("emoji" if scale == 1 else "emoji64"), 1000
        vae = {"likelihood": "logistic_mixture", "images": 24_000, "plain_images": 2_400}
        own = {"vae": vae, "prior": {"images": 24_000}}
    most = count * math.prod(-(-side // scale // 4) for side in (height, width)) // PATCHES_OF_A_PART
    bank = {"size": max(min(parts, most), min(20, count))}
    settings = {"data": data, "grid": grid, "bank": bank, "train": {"mirror": 0.0}, **own}
    return preset, {**settings, "eval": {"split": "valid"}, "scale": {"num_workers": 0}}
