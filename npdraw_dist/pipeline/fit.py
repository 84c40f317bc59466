"""`npdraw_dist.fit`: images in, a trained model out."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyarrow import fs

from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import copy, list_files, open_filesystem, read_bytes, write_bytes
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.hub import HubModel
from npdraw_dist.pipeline.models import SourceModel, load_model
from npdraw_dist.pipeline.pictures_in import Pictures, pictures_of, suited
from npdraw_dist.pipeline.progress import console, results
from npdraw_dist.pipeline.run import start

SHARD_ROWS = 2048


def fit(
    images: Any,
    *,
    preset: str | None = None,
    image_size: int | None = None,
    name: str | None = None,
    storage: str | None = None,
    num_workers: int | str = 0,
    ray: bool = False,
    init: GenerativeModel | str | Path | None = None,
    **settings: Any,
) -> GenerativeModel:
    """Trains a model on `images`, and returns it, in eval mode on the CPU.

    images: a folder of pictures; an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats
    in [0, 1]; a Ray Dataset with a column `image`; or a sequence of arrays, tensors, PIL images, paths, or
    dicts or tuples with one of these, such as a torch Dataset. Those that cannot be read are skipped and
    listed. What they are decides the sizes, the likelihood and the preset, which are printed.

    preset: another preset. image_size: the side that pictures are padded (or with `data.fit` cropped) and
    resized to, at most 72. name, storage: of the run folder, as for the command, which `npdraw train` resumes
    and the same call finds done; without both it is temporary. num_workers: 0 trains in this process, without
    Ray; others on Ray, on the cluster that RAY_ADDRESS names if there is one. ray: also with one worker.

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
        start_from = _start_from(init, root, called)
        if start_from is not None:
            nested = merge({"init": {"model": start_from}}, nested)
            image_size = image_size or SourceModel.read(start_from).spec.image_shape[1]
        asked = nested.get("data", {})
        framed = {key: asked[key] for key in ("fit", "background") if key in asked}
        pictures = pictures_of(images, image_size, **framed)
        suiting, chosen = suited(pictures)
        preset = preset or suiting
        if start_from is not None:  # else the model says what the network is
            sizes = {name: value for name, value in chosen["data"].items() if name != "binarize"}
            chosen = {"data": sizes, "eval": chosen["eval"], "scale": chosen["scale"]}
        data = {"source": "parquet", "path": _write(pictures, root, called)}
        asked = merge(chosen, {"data": data, "scale": {"num_workers": num_workers or int(ray)}}, nested)
        experiment = resolve(preset, None, asked)
        _say(experiment, preset, pictures)
        store = start(experiment, root, called, experiment.stage_names, list_pictures=not temporary)
        return load_model(store.shown("model"))


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


def _say(experiment: Experiment, preset: str, pictures: Pictures) -> None:
    channels, height, width = experiment.data.shape
    kind = "colour" if channels == 3 else "grey"
    parts = f", {experiment.bank.size} parts" if "bank" in experiment.stage_names else ""
    console.print(
        f"fit: {len(pictures.ids):,} {kind} images of {height}x{width} on {experiment.grid.background}; "
        f"preset {preset}, likelihood {experiment.vae.likelihood}, binarize {experiment.data.binarize}{parts}"
    )
    if pictures.warning is not None:
        results.print(f"fit: warning: {pictures.warning}", markup=False)


def _write(pictures: Pictures, storage: str, name: str) -> str:
    """Writes the images as Parquet shards beside the run, unless they are there; returns their folder.

    Raises UserError if other images are there.
    """
    folder = f"{storage.rstrip('/')}/{name}-images"
    filesystem, root = open_filesystem(folder)
    rows, order = Rows(pictures.ids, pictures.images, pictures.labels), range(len(pictures.ids))
    files = {
        f"{root}/images-{first // SHARD_ROWS:05d}.parquet": to_parquet(rows.take(order[first:][:SHARD_ROWS]))
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
