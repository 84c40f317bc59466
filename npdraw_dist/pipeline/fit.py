"""`npdraw_dist.fit`: images of any Python kind in, a trained model out.

Shapes: N images, C channels, S side of the square.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pictures import (
    SUFFIXES,
    BadPicture,
    Frame,
    array_picture,
    is_grey,
    open_picture,
    pixel_fault,
    read_picture,
    to_image,
)
from npdraw_dist.core.storage import copy, list_files, open_filesystem, read_bytes, write_bytes
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Reject, Rows
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.hub import HubModel
from npdraw_dist.pipeline.models import SourceModel, load_model
from npdraw_dist.pipeline.probe import budgets
from npdraw_dist.pipeline.progress import console, results
from npdraw_dist.pipeline.run import start
from npdraw_dist.pipeline.store import CONFIG, Store
from npdraw_dist.training.metrics_log import read_metrics

SHARD_ROWS = 2048
SMALL, LARGE = 32, 64  # the sides that pictures of other sizes get
LARGEST_CANVAS = 36  # largest side of an image that is its own canvas
BINARY, NEAR_BINARY = 0.02, 0.3  # shares of values between black and white
PATCHES_OF_A_PART = 50
KEYS = ("image", "img", "pixel_values")  # a dict's picture, the first that is there
BUDGETS = ("images", "relaxed_images", "plain_images")  # of the VAE
SHOWN = 3  # names of skipped pictures in a warning

Item = tuple[str, Path | bytes | Image.Image, int]  # id, picture, label


def fit(
    images: Any,
    *,
    labels: Sequence[int | str] | None = None,
    preset: str | None = None,
    image_size: int | None = None,
    name: str | None = None,
    storage: str | None = None,
    num_workers: int | str = 0,
    ray: bool = False,
    minutes: float | None = None,
    init: GenerativeModel | str | Path | None = None,
    **settings: Any,
) -> GenerativeModel:
    """Trains a model on `images`, and returns it, in eval mode on the CPU, with its `history`.

    images: a folder of pictures; an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats
    in [0, 1]; a Ray Dataset with a column `image`; or a sequence of arrays, tensors, PIL images, paths, or
    dicts or tuples with one of these, such as a torch Dataset. Those that cannot be read are skipped and
    listed. What they are decides the sizes, the likelihood and the preset, which are printed.

    labels: of each image a class, by number or name, or words about it; the model then draws what it is asked
    for (`NPDraw.draw(condition=)`). Names that seldom come twice are words; `prior.condition` decides it too.
    Without labels the folders of pictures are classes, if `prior.condition` is `class`.

    preset: another preset. image_size: the side that pictures are padded (or with `data.fit` cropped) and
    resized to, at most 72. name, storage: of the run folder, as for the command, which `npdraw train` resumes
    and the same call finds done; without both it is temporary. num_workers: 0 trains in this process, without
    Ray; others on Ray, on the cluster that RAY_ADDRESS names if there is one. ray: also with one worker.
    minutes: about how long to train, in this process; a few steps find the budgets; None: the preset's.

    init: a trained model of any kind, or what `npdraw_dist.load` takes, that is trained on with these images:
    the run takes its network and parts, as with `init.model` of the command; a larger `bank.size` adds parts.
    settings: as flags of the command, in sections or with a dot: `fit(images, vae={"images": 60_000})` or
    `fit(images, **{"vae.images": 60_000})`. Raises UserError on images or settings that cannot be used.
    """
    nested = _nested(settings)
    temporary = name is None and storage is None
    with ExitStack() as stack:
        if temporary:
            storage = stack.enter_context(tempfile.TemporaryDirectory(prefix="npdraw-"))
        root, called = storage or "runs", name or "fit"
        _require_apart(images, root)
        start_from = _start_from(init, root, called)
        if start_from is not None:
            nested = merge({"init": {"model": start_from}}, nested)
            image_size = image_size or SourceModel.read(start_from).spec.image_shape[1]
        asked = nested.get("data", {})
        framed = {key: asked[key] for key in ("fit", "background") if key in asked}
        pictures = pictures_of(images, image_size, **framed)
        classes = _classes(Path(name) for name in (*pictures.ids, *(one.id for one in pictures.rejects)))
        if labels is not None:
            asked_kind = nested.get("prior", {}).get("condition")
            pictures, classes = labelled(pictures, labels, asked_kind)
            nested = merge({"prior": {"condition": "class" if classes else "words"}}, nested)
        suiting, chosen = suited(pictures)
        preset = preset or suiting
        if start_from is not None:  # else the model says what the network is
            sizes = {name: value for name, value in chosen["data"].items() if name != "binarize"}
            chosen = {"data": sizes, "eval": chosen["eval"], "scale": chosen["scale"]}
        data = {"source": "parquet", "path": _write(pictures, classes, root, called)}
        asked = merge(chosen, {"data": data, "scale": {"num_workers": num_workers or int(ray)}}, nested)
        experiment = resolve(preset, None, asked)
        if minutes is not None:
            experiment = resolve(
                preset, None, merge(asked, _budgets(experiment, minutes, root, called), nested)
            )
        _say(experiment, preset, pictures)
        store = start(experiment, root, called, experiment.stage_names, list_pictures=not temporary)
        model = load_model(store.shown("model"))
        assert isinstance(model, HubModel)
        stages = [stage for stage in ("prior", "vae") if store.has(stage)]
        model.history = {stage: read_metrics(store.filesystem, store.path(stage)) for stage in stages}
        return model


def _require_apart(images: Any, storage: str) -> None:
    """Raises UserError if the run's own pictures would come among those of the folder."""
    if isinstance(images, str | Path) and "://" not in storage:
        folder, inside = (Path(path).expanduser().resolve() for path in (images, storage))
        if inside.is_relative_to(folder):
            raise UserError(f"the run would lie among the pictures, in {inside}; give a storage elsewhere")


def _budgets(experiment: Experiment, minutes: float, storage: str, name: str) -> dict[str, Any]:
    """Settings for so much time; those that a run of this name began with, if there is one."""
    if experiment.scale.num_workers != 0 or experiment.model.kind != "npdraw":
        raise UserError("minutes is for NP-DRAW in this process; leave out num_workers, ray and model.kind")
    store = Store.open(storage, name)
    if not store.has(CONFIG):
        return budgets(experiment, minutes)
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
    folder = f"{storage.rstrip('/')}/{name}-init"
    with tempfile.TemporaryDirectory() as local:
        init.save_pretrained(Path(local))
        copy(fs.LocalFileSystem(), local, *open_filesystem(folder))
    return folder


def _say(experiment: Experiment, preset: str, pictures: Rows) -> None:
    channels, height, width = experiment.data.shape
    kind = "colour" if channels == 3 else "grey"
    parts = f", {experiment.bank.size} parts" if "bank" in experiment.stage_names else ""
    console.print(
        f"fit: {len(pictures):,} {kind} images of {height}x{width} on {experiment.grid.background}; "
        f"preset {preset}, likelihood {experiment.vae.likelihood}, binarize {experiment.data.binarize}{parts}"
    )
    if skipped := pictures.rejects:
        told = f"{len(skipped):,} of {len(pictures) + len(skipped):,} pictures are skipped"
        results.print(f"fit: warning: {told} ({_reasons(skipped)})", markup=False)


def _reasons(skipped: Sequence[Reject]) -> str:
    shown = [f"{one.id}: {one.reason}" for one in skipped[:SHOWN]]
    return "; ".join([*shown, "..."] if len(skipped) > SHOWN else shown)


def labelled(
    pictures: Rows, labels: Sequence[int | str], kind: str | None = None
) -> tuple[Rows, tuple[str, ...]]:
    """The pictures with what `fit` is told of each, and the names of the classes; none: the labels are words.

    kind: class or words; None: names are words if most come once. Raises UserError if the numbers differ.
    """
    given = list(labels.tolist() if hasattr(labels, "tolist") else labels)
    if len(given) != len(pictures) + len(pictures.rejects):
        raise UserError(f"there are {len(given)} labels for {len(pictures) + len(pictures.rejects)} images")
    try:
        told = [given[int(name)] for name in pictures.ids]
    except ValueError:
        why = "labels are for a list of images; those of a folder are its folders"
        raise UserError(why) from None
    names = {str(label) for label in given}
    if kind == "words" or (kind is None and isinstance(given[0], str) and 2 * len(names) > len(given)):
        return replace(pictures, words=[str(label) for label in told]), ()
    if all(isinstance(label, int) and label >= 0 for label in given):
        classes = tuple(str(number) for number in range(1 + max(map(int, given))))
    else:
        classes = tuple(sorted(names))
    numbers = {name: number for number, name in enumerate(classes)}
    return replace(pictures, labels=np.array([numbers[str(label)] for label in told], np.int64)), classes


def _write(rows: Rows, classes: Sequence[str], storage: str, name: str) -> str:
    """Writes the images as shards beside the run; returns their folder. UserError: others lie there."""
    folder = f"{storage.rstrip('/')}/{name}-images"
    filesystem, root = open_filesystem(folder)
    order = range(len(rows))
    files = {
        f"{root}/images-{first // SHARD_ROWS:05d}.parquet": to_parquet(
            rows.take(order[first:][:SHARD_ROWS]), classes=classes
        )
        for first in order[::SHARD_ROWS]
    }
    there = {path for path, _ in list_files(filesystem, root)}
    if any(path not in files or read_bytes(filesystem, path) != files[path] for path in there):
        raise UserError(f"{folder} holds other images than these; take another name")
    for path in files.keys() - there:
        write_bytes(filesystem, path, files[path])
    return root if isinstance(filesystem, fs.LocalFileSystem) else folder


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"vae.images": 5} and {"vae": {"images": 5}} -> the latter."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, dot, field = key.partition(".")
        if not dot and not isinstance(value, Mapping) and key != "seed":
            raise UserError(f"{key} is no section of settings; write, such as, vae={{'images': 60_000}}")
        nested = merge(nested, {section: {field: value} if dot else value})
    return nested


def pictures_of(
    images: Any, image_size: int | None = None, fit: Literal["pad", "crop"] = "pad", background: str = "white"
) -> Rows:
    """Reads `images`: a folder, an array or tensor, a Ray Dataset, or any sequence of images.

    An array is (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1]. An item of a sequence, as
    of a torch Dataset, is an array, a tensor, a PIL image, a path or an encoded picture: alone, before its
    label in a tuple, or under one of KEYS beside `label` in a dict; the label of a file is the number of its
    folder. Pictures are opened one at a time, first for their sizes, padded with the background (`crop`:
    cropped to the centre), resized to `image_size`, by default SMALL or LARGE, and left out if they cannot be
    read. Raises UserError on anything else.
    """
    items, skipped = _items_of(images), dict[str, str]()
    sizes: list[tuple[int, int]] = []
    kinds: set[bool | None] = set()
    for name, item, _ in items():
        try:
            size, grey = _header(item)
            sizes.append(size)
            kinds.add(grey)
        except BadPicture as error:
            skipped[name] = str(error)
    side = image_size or _side(sizes)
    frame = Frame((1 if kinds == {True} else 3, side, side), background, fit)
    read: list[tuple[str, int, NDArray[np.uint8]]] = []
    for name, item, label in items():
        try:
            if name not in skipped:
                image = to_image(item, frame) if isinstance(item, Image.Image) else read_picture(item, frame)
                read.append((name, label, image))
        except BadPicture as error:
            skipped[name] = str(error)
    rejects = [Reject(name, why) for name, why in skipped.items()]
    if not read:
        reasons = f" ({_reasons(rejects)})" if rejects else ""
        raise UserError(f"there are no images to fit{reasons}")
    names, labels, stack = zip(*read, strict=True)
    pixels = np.stack(stack)
    if False not in kinds and (pixels == pixels[:, :1]).all():  # what is transparent may be grey
        pixels = np.ascontiguousarray(pixels[:, :1])
    return Rows(list(names), pixels, np.array(labels, np.int64), rejects)


def _classes(files: Iterable[Path]) -> tuple[str, ...]:
    """The first folders of paths below a folder of pictures; () of anything that lies in none."""
    return tuple(sorted({name.parts[0] for name in files if len(name.parts) > 1}))


def _files(folder: str | Path) -> dict[Path, Path]:
    """Path below the folder -> path, of its pictures."""
    root = Path(folder).expanduser()
    every = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {path.relative_to(root): path for path in every if not path.name.startswith(".")}


def _items_of(images: Any) -> Callable[[], Iterator[Item]]:
    """What gives (id, picture, label) of each item, one at a time and as often as asked."""
    if isinstance(images, str | Path):
        files = _files(images)
        if not files:
            raise UserError(f"{Path(images).expanduser()} has no image ({', '.join(SUFFIXES)})")
        classes = _classes(files)
        labels = {name: classes.index(name.parts[0]) if len(name.parts) > 1 else -1 for name in files}
        return lambda: ((str(name), path, labels[name]) for name, path in files.items())
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim not in (3, 4):
        raise UserError(f"images are (N, H, W), (N, H, W, C) or (N, C, H, W), not {tuple(images.shape)}")
    if hasattr(images, "iter_rows"):  # a Ray Dataset
        rows = images.iter_rows
    elif hasattr(images, "__len__"):
        rows = partial(map, images.__getitem__, range(len(images)))
    else:
        kind = type(images).__name__
        raise UserError(f"images are a folder, an array, a tensor or a sequence, not {kind}")
    return lambda: (
        (f"{number:08d}", *_picture_and_label(value, f"{number:08d}")) for number, value in enumerate(rows())
    )


def _picture_and_label(value: Any, name: str) -> tuple[Path | bytes | Image.Image, int]:
    """A picture, of which no more than the header is read, and its label; -1: unknown."""
    label: Any = -1
    if isinstance(value, tuple):
        value, label = value[0], value[1] if len(value) > 1 else -1
    elif isinstance(value, Mapping):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise UserError(f"image {name} has none of {', '.join(KEYS)}, but {', '.join(map(str, value))}")
        value, label = value[key], value.get("label", -1)
    if isinstance(value, Mapping) and value.get("bytes") is not None:  # as Hugging Face writes it
        value = value["bytes"]
    number = int(label) if isinstance(label, int | np.integer) else -1
    if isinstance(value, bytes | Image.Image):
        return value, number
    if isinstance(value, str | Path):
        return Path(value), number
    array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    try:
        if (fault := pixel_fault(array)) is not None:
            raise BadPicture(fault)
        return array_picture(array), number
    except BadPicture as error:  # an array is no file: whoever made it can mend it
        raise UserError(f"image {name} has {error}") from None


def _header(item: Path | bytes | Image.Image) -> tuple[tuple[int, int], bool | None]:
    """Width and height, and whether the picture is grey; None: only pixels tell. Raises BadPicture."""
    if isinstance(item, Image.Image):
        return item.size, is_grey(item)
    with open_picture(item) as picture:
        return picture.size, is_grey(picture)


def _side(sizes: Sequence[tuple[int, int]]) -> int:
    """The side of the images: that of the pictures if they are squares of one small size."""
    sides = {side for size in sizes for side in size}
    if len(sides) == 1 and max(sides) <= LARGE:
        return sides.pop()
    return SMALL if np.median([min(size) for size in sizes] or [0]) < 48 else LARGE


def suited(pictures: Rows) -> tuple[str, dict[str, Any]]:
    """The preset for these pictures, and what differs from it."""
    count, channels, size, _ = pictures.images.shape
    scale = 1 if size <= LARGEST_CANVAS else 2
    if size % scale or size > 2 * LARGEST_CANVAS:
        raise UserError(f"image_size {size}: take at most {LARGEST_CANVAS}, or an even side up to 72")
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
