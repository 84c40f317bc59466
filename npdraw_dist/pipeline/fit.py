"""`npdraw_dist.fit`: images of any Python kind in, a trained model out.

Shapes: N images, C channels, S side of the square.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Real
from pathlib import Path
from typing import Any

from pyarrow import fs

from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.model_files import WEIGHTS
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.storage import is_file, open_filesystem, require_apart, sha256, write_bytes
from npdraw_dist.data.rows import Rows
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.hub import HubModel
from npdraw_dist.pipeline import fit_source
from npdraw_dist.pipeline.fit_images import LARGEST_CANVAS, Looked, canvas_scale, look, reasons
from npdraw_dist.pipeline.models import BANK, SourceModel, load_model
from npdraw_dist.pipeline.probe import budgets
from npdraw_dist.pipeline.progress import console, results
from npdraw_dist.pipeline.run import start
from npdraw_dist.pipeline.stage import Watcher
from npdraw_dist.pipeline.store import CONFIG, Store
from npdraw_dist.training.metrics_log import read_metrics

BINARY, NEAR_BINARY = 0.02, 0.3  # shares of values between black and white
PATCHES_OF_A_PART = 50
BUDGETS = ("images", "relaxed_images", "plain_images")  # of the VAE


def fit(
    images: Any,
    *,
    labels: Sequence[int | str | None] | None = None,
    valid: Any = None,
    valid_labels: Sequence[int | str | None] | None = None,
    preset: str | None = None,
    image_size: int | None = None,
    name: str | None = None,
    storage: str | Path | None = None,
    num_workers: int | str = 0,
    ray: bool = False,
    minutes: float | None = None,
    init: GenerativeModel | str | Path | None = None,
    bank: PartBank | str | Path | Mapping[str, Any] | None = None,
    callbacks: Sequence[Watcher] = (),
    **settings: Any,
) -> GenerativeModel:
    """Trains a model on `images`, and returns it, in eval mode on the CPU, with its `history`.

    images: a folder of pictures, of which up to 256 decide the settings, and which each node of a cluster has
    to see if it has more; an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in
    [0, 1]; a Ray Dataset with a column `image`, whose first 1,000 rows decide the settings, and which its
    cluster writes to the storage, so that each node has to see that; or a sequence of arrays, tensors, PIL
    images, paths, or dicts or tuples with one of these, such as a torch Dataset. Those that cannot be read
    are skipped, and listed in data/rejects.jsonl of the run. What they are decides the sizes, the likelihood
    and the preset, which are printed.

    labels: a class of each image, by number or name, or words about it; the model can then be conditioned
    (`NPDraw.draw(condition=)`). Names that seldom come twice are words; `prior.condition` decides it too. -1
    among numbers, None and NaN are not known. Without labels the folders of pictures are classes, if
    `prior.condition` is `class`.

    valid, valid_labels: other images of any kind, and what they show, for validation; None: a tenth of the
    images. preset: another preset. image_size: the side that pictures are padded (or with `data.fit` cropped)
    and resized to, up to 128. name, storage: of the run folder, as for the command, which `npdraw train`
    resumes and the same call finds done; without either it is temporary. num_workers: 0 trains in this
    process, without Ray; others on Ray, on the cluster that RAY_ADDRESS names if there is one. ray: on Ray
    with one worker. minutes: about how long to train, in this process; a few steps find the budgets; None:
    24,000 images a stage, or the preset's where pictures are nearly binary.

    init: a trained model of any kind, or what `npdraw_dist.load` takes, that is trained on with these images:
    the run takes its network and parts, as with `init.model` of the command. bank: a part bank to draw with,
    or where `npdraw bank` wrote one. A mapping is the section `bank` of the settings.

    callbacks: each is called as `callback(row, stage)` with the metrics of each validation and of the
    training between, and their `images_seen`; what it raises ends the training, and the same call resumes it
    where the run has a name. settings: as flags of the command, in sections or with a dot:
    `fit(images, vae={"images": 60_000})` or `fit(images, **{"vae.images": 60_000})`. Raises UserError on
    images or settings that cannot be used.
    """
    nested = _nested({**settings, "bank": bank} if isinstance(bank, Mapping) else settings)
    own = nested.get("data", {})
    image_size = own.get("image_size") if image_size is None else image_size
    _require_settings(own, minutes=minutes, image_size=image_size)
    temporary = name is None and storage is None
    with ExitStack() as stack:
        if temporary:
            storage = stack.enter_context(tempfile.TemporaryDirectory(prefix="npdraw-"))
        root, called = "runs" if storage is None else str(storage), "fit" if name is None else name
        run = Store.open(root, called)
        for folder in (images, valid):
            if isinstance(folder, str | Path) and "://" not in str(folder):
                require_apart(str(folder), run.filesystem, run.root, "the run", "storage")
        channels, source = None, _start_from(init, root, called)
        if source is not None:
            nested = merge({"init": {"model": source}}, nested)
            colours, side, _ = SourceModel.read(source).spec.image_shape
            image_size, channels = image_size or side, 3 if colours == 3 else None
        if bank is not None and not isinstance(bank, Mapping):
            nested = merge(_with_bank(bank, root, called), nested)
        framed = {key: own[key] for key in ("fit", "background") if key in own}
        condition = nested.get("prior", {}).get("condition")
        looked = look((images, labels), (valid, valid_labels), condition, image_size, channels, framed)
        if labels is not None:
            nested = merge({"prior": {"condition": "class" if looked.classes else "words"}}, nested)
        chosen = _chosen(looked, preset, nested, num_workers or int(ray))
        experiment = resolve(*chosen)
        if minutes is not None:
            _require_probe(experiment, nested)
        if not looked.is_dataset:
            _require_condition(experiment, looked.pictures, looked.classes)
        if minutes is not None:
            found = _budgets(experiment, minutes, root, called)
            experiment = resolve(chosen[0], None, merge(chosen[2], found, nested))
        _say(experiment, chosen[0], looked)
        given = fit_source.given(images, looked, experiment)
        store = start(
            experiment, root, called, experiment.stage_names, not temporary, watchers=callbacks, given=given
        )
        return _trained(store)


def _require_settings(data: Mapping[str, Any], **numbers: Any) -> None:
    """Raises UserError if section data states what follows from the images, or a number is none above 0."""
    if taken := {"source", "path", "channels"} & data.keys():
        raise UserError(f"data.{min(taken)} follows from the images; leave it out")
    for what, value in numbers.items():
        if value is not None and not (isinstance(value, Real) and float(value) > 0):
            raise UserError(f"{what} is {value!r}; it must be a number above 0")


def _chosen(
    looked: Looked, preset: str | None, nested: Mapping[str, Any], workers: int | str
) -> tuple[str, None, dict[str, Any]]:
    """The preset and the settings of the run, as `resolve` takes them. nested: those that the user gives."""
    suiting, chosen = suited(looked.pictures, looked.count)
    if nested.get("init", {}).get("model") is not None:  # it says what the network is
        sizes = {name: value for name, value in chosen["data"].items() if name != "binarize"}
        kept = {name: chosen[name] for name in ("train", "eval", "scale")}
        chosen = {**kept, "data": sizes, **_budgets_of(chosen)}
    if nested.get("init", {}).get("bank") is not None:
        chosen.pop("bank", None)  # it has as many parts as it has
    data: dict[str, Any] = {"source": "given"}
    if not looked.is_dataset:
        data["max_bad_fraction"] = 1.0  # what is no picture is skipped
    return preset or suiting, None, merge(chosen, {"data": data, "scale": {"num_workers": workers}}, nested)


def _trained(store: Store) -> GenerativeModel:
    """The model of a finished run, with its history."""
    with store.reading("model") as folder:
        model = load_model(str(folder))
    assert isinstance(model, HubModel)
    stages = [stage for stage in ("prior", "vae") if store.has(stage)]
    model.history = {stage: read_metrics(store.filesystem, store.path(stage)) for stage in stages}
    return model


def _require_probe(experiment: Experiment, given: Mapping[str, Any]) -> None:
    """Raises UserError if no probe can find budgets, or `given` settings have some."""
    kind = experiment.model.kind
    if not experiment.has_parts:
        raise UserError(
            f"minutes is for NP-DRAW, and the model is of kind {kind}: call fit without minutes, or npdraw "
            "train --init.model MODEL"
        )
    if not experiment.scale.here:
        raise UserError("minutes is for a training in this process; leave out num_workers and ray")
    if sections := [stage for stage in ("prior", "vae") if "images" in given.get(stage, {})]:
        raise UserError(f"minutes decides {sections[0]}.images; leave one of them out")


def _require_condition(experiment: Experiment, pictures: Rows, classes: Sequence[str]) -> None:
    """Raises UserError if the prior takes a condition that no image has, before anything is made of them."""
    if not experiment.takes_condition or experiment.prior.vocabulary:
        return
    kind = experiment.prior.condition
    if not (any(pictures.words or ()) if kind == "words" else classes or pictures.known_labels().max() >= 0):
        name = "classes" if kind == "class" else "words"
        raise UserError(f"prior.condition is {kind}, and the images have no {name}; give labels")


def _with_bank(bank: PartBank | str | Path, storage: str, name: str) -> dict[str, Any]:
    """The nested settings of a run with these parts. A bank in memory is saved beside the run."""
    if not isinstance(bank, PartBank):
        return {"init": {"bank": str(bank)}}
    return {"init": {"bank": _beside(storage, name, "bank", BANK, lambda folder: bank.save(folder / BANK))}}


def _beside(storage: str, name: str, what: str, file: str, save: Callable[[Path], object]) -> str:
    """Saves what a run starts from beside it, in a folder named by its content; returns that.

    So calls with one name never write into each other's folders. UserError: the run began with another.
    """
    with tempfile.TemporaryDirectory() as local:
        save(Path(local))
        content = sha256(fs.LocalFileSystem(), f"{local}/{file}")
        store = Store.open(storage, name)
        if store.has(CONFIG) and (began := store.config().init.sha256) != content:
            began_with = "without this" if began is None else "with another"
            raise UserError(f"the run {name} began {began_with} {what} ({file}); take another name")
        folder = f"{storage.rstrip('/')}/{name}-{what}-{content[:12]}"
        filesystem, root = open_filesystem(folder)
        for path in sorted(
            Path(local).iterdir(), key=lambda path: path.name == file
        ):  # `file` says all is there
            if not is_file(filesystem, f"{root}/{file}"):
                write_bytes(filesystem, f"{root}/{path.name}", path.read_bytes())
    return folder


def _budgets(experiment: Experiment, minutes: float, storage: str, name: str) -> dict[str, Any]:
    """Settings for so much time; those that a run of this name began with, if there is one."""
    store = Store.open(storage, name)
    if not store.has(CONFIG):
        return budgets(experiment, minutes)
    console.print(f"fit: {store.shown()} goes on with the budgets that it began with, whatever minutes is")
    begun = store.config()
    names = {"prior": ("images",), "vae": BUDGETS, "train": ("eval_every_images",)}
    return {
        section: {key: getattr(getattr(begun, section), key) for key in keys}
        for section, keys in names.items()
    }


def _start_from(init: GenerativeModel | str | Path | None, storage: str, name: str) -> str | None:
    """The path or URI of the model to start from. A model in memory is saved beside the run."""
    if init is None or isinstance(init, str | Path):
        return None if init is None else str(init)
    if not isinstance(init, HubModel):
        raise UserError(f"init is a {type(init).__name__}; give a trained model, or the path of one")
    return _beside(storage, name, "init", WEIGHTS, init.save_pretrained)


def _say(experiment: Experiment, preset: str, looked: Looked) -> None:
    channels, height, width = experiment.data.shape
    kind = "colour" if channels == 3 else "grey"
    parts = f", {experiment.bank.size} parts" if "bank" in experiment.stage_names else ""
    console.print(
        f"fit: {looked.count:,} {kind} images of {height}x{width} on {experiment.grid.background}; "
        f"preset {preset}, likelihood {experiment.vae.likelihood}, binarize {experiment.data.binarize}{parts}"
    )
    every = [looked.pictures] if looked.validation is None else [looked.pictures, looked.validation]
    if skipped := [reject for rows in every for reject in rows.rejects]:
        among = f"{sum(map(len, every)) + len(skipped):,}"
        seen = "looked at " if looked.is_partial else ""
        line = f"{len(skipped):,} of {among} pictures {seen}are skipped ({reasons(skipped)})"
        results.print(f"fit: warning: {line}", markup=False)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"vae.images": 5} and {"vae": {"images": 5}} -> the latter."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, dot, field = key.partition(".")
        if not dot and not isinstance(value, Mapping) and key != "seed":
            raise UserError(f"{key} is no section of settings; write, such as, vae={{'images': 60_000}}")
        nested = merge(nested, {section: {field: value} if dot else value})
    return nested


def _budgets_of(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of nested settings the budgets of prior and VAE."""
    found = {stage: settings.get(stage, {}) for stage in ("prior", "vae")}
    return {stage: {name: own[name] for name in BUDGETS if name in own} for stage, own in found.items()}


def suited(pictures: Rows, count: int | None = None) -> tuple[str, dict[str, Any]]:
    """The preset for these pictures, or for `count` like them, and what differs from it."""
    shown, channels, size, _ = pictures.images.shape
    count = count or shown
    scale = canvas_scale(size)
    if scale is None:
        raise UserError(
            f"image_size {size}: no canvas of at most {LARGEST_CANVAS} fits it; take 32, 64, 96 or 128"
        )
    data = {"image_size": size, "channels": channels, "binarize": "none", "test_fraction": 0.0}
    pixels = pictures.images
    edges = float(pixels[..., [0, -1], :].mean() + pixels[..., [0, -1]].mean()) / 2
    grid = {"downscale": scale, "background": "white" if edges > 127 else "black"}
    shades = float(((pixels > 25) & (pixels < 230)).mean())  # share of values neither near 0 nor near 1
    own: dict[str, Any]
    if channels == 1 and shades < NEAR_BINARY:
        preset, parts, own = "digits", 100, {"vae": {"likelihood": "bernoulli"}}
        data["binarize"] = "threshold" if shades < BINARY else "dynamic"
    else:
        preset, parts = ("emoji" if scale == 1 else "emoji64"), 1000
        vae = {"likelihood": "logistic_mixture", "images": 24_000, "plain_images": 2_400}
        own = {"vae": vae, "prior": {"images": 24_000}}
    most = count * (-(-size // scale // 4)) ** 2 // PATCHES_OF_A_PART
    bank = {"size": max(min(parts, most), min(20, count))}
    settings = {"data": data, "grid": grid, "bank": bank, "train": {"mirror": 0.0}, **own}
    return preset, {**settings, "eval": {"split": "valid"}, "scale": {"num_workers": 0}}
