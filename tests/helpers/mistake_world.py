"""The folder and the machine on which the mistakes of tests/test_mistakes.py are made."""

import gzip
import hashlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from npdraw_dist.config.load import dump, resolve
from npdraw_dist.core.parts import PartSequence
from tests.helpers.image_files import write_tar
from tests.helpers.studio_models import GREY, save_model
from tests.helpers.tiny_baselines import tiny_baseline

CPUS = 2
ARRAYS = """
import torch

class Halves(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

class Maps(torch.nn.Module):
    def forward(self, images):
        return images
"""
SPACE = "from tune_spaces.space import Choice, Range, Space\nSPACE = "
SPACES = {
    "unknown_key": "Space({'bank.sise': Choice((10, 20))}, 2)",
    "impossible": "Space({'prior.depth': Choice((0, 2))}, 2)",
    "no_values": "Space({'prior.depth': Choice(())}, 2)",
    "backwards": "Space({'vae.beta': Range(2, 1)}, 2)",
    "no_fields": "Space({}, 2)",
    "seeds": "Space({'seed': Choice((1, 2))}, 2)",
    "not_a_space": "{'prior.depth': [1, 2]}",
    "broken": "Space({'prior.depth': Choice((1, 2))}, 2",
}


def write(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def write_mnist(folder: Path, side: int = 28) -> Path:
    """20 training and 10 test images; returns the file of the training images."""
    for prefix, n in (("train", 20), ("t10k", 10)):
        for kind, shape in (("images", (n, side, side)), ("labels", (n,))):
            head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            content = head + np.full(shape, 9, np.uint8).tobytes()
            write(folder / f"{prefix}-{kind}-idx{len(shape)}-ubyte", content)
    return folder / "train-images-idx3-ubyte"


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", (28, 28), number).save(folder / f"{number}.png")


def write_data(world: Path) -> None:
    """Data sets: whole ones, damaged ones, and ones without images; tables of labels."""
    write(world / "columns.csv", "name,label\n0.png,a\n")
    for name, more in (("gone", "gone.png,b"), ("twice", "0.png,a"), ("one", "1.png,a\n2.png,a")):
        write(world / f"{name}.csv", f"file,label\n0.png,a\n{more}\n")
    write_mnist(world / "mnist")
    write_mnist(world / "mnist-large", side=32)
    truncated = write_mnist(world / "mnist-truncated")
    truncated.write_bytes(truncated.read_bytes()[:-100])
    zipped = write_mnist(world / "mnist-gzip")
    zipped.with_suffix(".gz").write_bytes(gzip.compress(zipped.read_bytes())[:-10])
    zipped.unlink()
    write_images(world / "pictures", 30)
    write_images(world / "split" / "train", 12)
    write_images(world / "split" / "test", 6)
    for name in ("empty", "tables", "words"):
        (world / name).mkdir()
    pq.write_table(pa.table({"picture": [1]}), world / "tables" / "0.parquet")
    pq.write_table(pa.table({"image": ["a"]}), world / "words" / "0.parquet")
    for name in ("file", "mine/notes.txt", "no-table/0.parquet"):
        write(world / name, "no table")
    write_tar(world / "tars" / "00.tar", [("a.png", b"")])


def write_models(world: Path) -> None:
    """A tiny model, and copies that are each damaged in another way."""
    model = save_model(world, GREY)
    run = resolve("digits", None, {"data": {"binarize": "dynamic"}})
    (world / "config.yaml").write_text(dump(run))
    (world / "test_split.json").write_text('{"opened": []}')

    def copy(name: str) -> tuple[Path, Path]:
        folder = Path(shutil.copytree(model, world / "models" / name))
        return folder / "model.safetensors", folder / "config.json"

    tensors, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    copy("unweighted")[0].unlink()
    copy("truncated")[0].write_bytes((model / "model.safetensors").read_bytes()[:-50])
    copy("garbage")[0].write_bytes(b"\x80\x04K\x01." * 100)
    save_file({k: v[..., :1].contiguous() for k, v in tensors.items()}, copy("other-shapes")[0])
    save_file({"bank_parts": tensors["bank_parts"]}, copy("lacks-weights")[0])
    for name, text in (
        ("bert", json.dumps({"model_type": "bert", "hidden_size": 768})),
        ("newer", json.dumps({**config, "made_by": {"version": "9.0.0", "format": 99}})),
        ("gan", json.dumps({**config, "spec": {**config["spec"], "kind": "gan"}})),
        ("as-draw", json.dumps({**config, "spec": {**config["spec"], "kind": "draw"}})),
        ("cut", json.dumps(config)[:30]),
    ):
        copy(name)[1].write_text(text)
    copy("sound")
    tiny_baseline("vae").save_pretrained(world / "models" / "vae")
    shutil.copytree(model, world / "spoilt" / "model")
    (world / "spoilt" / "config.yaml").write_text("seed: [")
    (world / "spoilt" / "test_split.json").write_text("{}")
    z = torch.zeros(1, 12, dtype=torch.int64)
    PartSequence(z.bool(), z, z.clone()).save(world / "other.safetensors")


def write_settings(world: Path) -> None:
    """Config files, spaces of a sweep, and the run `runs/mine` of another config."""
    files: dict[str, str | bytes] = {
        "unknown.yaml": "prior: {dephts: 3}\n",
        "started.yaml": "init: {model: digits}\n",
        "flat.yaml": "prior: 3\n",
        "list.yaml": "- prior\n",
        "broken.yaml": "prior: [1\n",
        "binary.yaml": b"\xff\xfe\x00",
        **{f"{name}.py": f"{SPACE}{text}\n" for name, text in SPACES.items()},
        "raises.py": "raise ValueError('not today\\nnor tomorrow')\n",
        "own_arrays.py": ARRAYS,
        "runs/mine/test_split.json": '{"opened": []}',
        "runs/mine/config.yaml": dump(resolve("digits", None, {"seed": 4})),
        "runs/damaged/config.yaml": "seed: [",
        "runs/newer/config.yaml": "prior: {colour: red}\n",
        "runs/listed/config.yaml": dump(resolve("digits", None, {})),
        "runs/listed/bank/manifest.json": "[1]",
        "claimed/.done/source.json": "{",
    }
    for name, content in files.items():
        write(world / name, content)


def write_world(world: Path) -> None:
    write_data(world)
    write_models(world)
    write_settings(world)


def contents(folder: Path) -> dict[str, str]:
    """Path -> hash of each file and folder below `folder`, caches of Python left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUS cores and no GPU; Ray may not be started or used."""

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", Mock(side_effect=AssertionError("Ray was started")))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: CPUS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@contextmanager
def taken_port() -> Iterator[int]:
    """A port of this machine that something listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]
