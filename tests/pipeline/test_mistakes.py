"""A user's mistake ends a command with status 2, one line that names the fix, and nothing written."""

import gzip
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from npdraw_dist import sample, train
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.npdraw import NPDraw
from tests.helpers.runs import TINY, Refused


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--preset", "digit"], ["unknown preset 'digit'", "did you mean digits?", "mnist"]),
        (["--prior.dept", "3"], ["prior.dept", "did you mean prior.depth?"]),
        (["--parse.steps", "37", "--parse.order", "ranked"], ["parse.steps is 37", "36 places"]),
        (["--parse.steps", "12"], ["parse.order aligned", "36", "raster"]),
        (["--prior.heads", "chain"], ["prior.heads", "chained", "independent"]),
        (["--prior.depth", "deep"], ["prior.depth", "deep"]),
        (["--prior.depth", "-1"], ["prior.depth", "greater than 0"]),
        (["--prior.width", "30"], ["prior.attention_heads must divide prior.width"]),
        (["--grid.stride", "6"], ["grid.stride is 6"]),
        (["--stages", "bank,parze"], ["unknown stage 'parze'", "did you mean parse?"]),
        (["--stages", ","], ["--stages names none"]),
        (["--config", "no-such.yaml"], ["no-such.yaml"]),
        (["--name", "a/b"], ["--name 'a/b'"]),
    ],
)
def test_flags_of_train(flags: list[str], says: list[str], storage: Path, refused: Refused) -> None:
    line = refused(train.main, "--storage", str(storage), *flags)
    for words in says:
        assert words in line
    assert not storage.exists()


def test_a_config_file_with_an_unknown_key(tmp_path: Path, storage: Path, refused: Refused) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("prior: {dephts: 3}\n")
    line = refused(train.main, "--storage", str(storage), "--config", str(file))
    assert "did you mean prior.depth?" in line
    assert not storage.exists()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path) -> None:
    folder.mkdir()
    for prefix, n in (("train", 20), ("t10k", 10)):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.full((n, 28, 28), 9, np.uint8)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.zeros(n, np.uint8)))


@pytest.mark.parametrize("damage", ["missing", "empty", "one file missing", "truncated", "truncated gzip"])
def test_data_of_train(damage: str, tmp_path: Path, storage: Path, refused: Refused) -> None:
    folder = tmp_path / "mnist"
    file = folder / "train-images-idx3-ubyte"
    if damage == "empty":
        folder.mkdir()
    elif damage != "missing":
        write_mnist(folder)
        content = file.read_bytes()
        file.unlink()
        if damage == "truncated":
            file.write_bytes(content[:-100])
        elif damage == "truncated gzip":
            file.with_suffix(".gz").write_bytes(gzip.compress(content)[:-10])
    line = refused(train.main, "--preset", "mnist", "--data.path", str(folder), "--storage", str(storage))
    assert str(folder) in line
    if damage.startswith("truncated"):
        assert "train-images-idx3-ubyte" in line
        assert "truncated" in line
    assert not storage.exists()


def test_storage_that_is_a_file(storage: Path, refused: Refused) -> None:
    storage.write_text("mine")
    line = refused(train.main, "--storage", str(storage))
    assert "cannot write to the storage" in line
    assert str(storage) in line
    assert storage.read_text() == "mine"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as `train` exports it."""
    tiny: dict[str, Any] = {
        "bank": {"size": 3},
        "prior": {"width": 8, "depth": 1, "attention_heads": 2},
        "vae": {"encoder_width": 8, "decoder_width": 8, "encoder_depth": 0, "decoder_depth": 0},
    }
    model = NPDraw(ModelSpec.of(Experiment.model_validate(tiny)))
    model.set_bank(PartBank(torch.rand(3, 1, 5, 5)))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_a_sound_model_is_sampled(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample.main(["--model", str(model), "--n", "3", "--out", str(out)])
    assert sorted(f.name for f in out.iterdir()) == ["generation.gif", "samples.npz", "samples.png"]
    arrays = np.load(out / "samples.npz", allow_pickle=False)
    assert arrays["images"].shape == (3, 1, 28, 28)


def spoil(model: Path, damage: str) -> None:
    weights, config = model / "model.safetensors", model / "config.json"
    if damage == "no folder":
        shutil.rmtree(model)
    elif damage == "no weights":
        weights.unlink()
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "garbage weights":
        weights.write_bytes(b"\x80\x04K\x01." * 100)
    elif damage == "weights of another shape":
        save_file({k: v[..., :1].contiguous() for k, v in load_file(weights).items()}, weights)
    elif damage == "weights that lack some":
        save_file({"bank_parts": load_file(weights)["bank_parts"]}, weights)
    elif damage == "config of another kind":
        config.write_text(json.dumps({"model_type": "bert", "hidden_size": 768}))
    elif damage == "config of another version":
        values = json.loads(config.read_text())
        values["spec"]["format"] = 99
        config.write_text(json.dumps(values))
    elif damage == "config that is a list":
        config.write_text("[1, 2]")
    else:
        config.write_text(config.read_text()[:30])


@pytest.mark.parametrize(
    "damage",
    [
        "no folder",
        "no weights",
        "truncated weights",
        "garbage weights",
        "weights of another shape",
        "weights that lack some",
        "config of another kind",
        "config of another version",
        "config that is a list",
        "truncated config",
    ],
)
def test_a_model_that_is_none(damage: str, model: Path, tmp_path: Path, refused: Refused) -> None:
    spoil(model, damage)
    out = tmp_path / "out"
    line = refused(sample.main, "--model", str(model), "--n", "2", "--out", str(out))
    assert str(model) in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--n", "0"], "--n"),
        (["--temperature", "0"], "--temperature"),
        (["--seed", "-1"], "--seed"),
        (["--sed", "1"], "did you mean seed?"),
    ],
)
def test_flags_of_sample(flags: list[str], says: str, model: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    assert says in refused(sample.main, "--model", str(model), "--out", str(out), *flags)
    assert not out.exists()


def test_sample_needs_a_model(refused: Refused, tmp_path: Path) -> None:
    assert "model" in refused(sample.main, "--out", str(tmp_path / "out"))


def test_samples_where_a_file_is(model: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").write_text("mine")
    line = refused(sample.main, "--model", str(model), "--n", "2", "--out", str(tmp_path / "out"))
    assert "cannot write to" in line
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("stage", "needs"), [("prior", "parse"), ("parse", "bank"), ("vae", "bank")])
def test_a_stage_without_its_input(stage: str, needs: str, storage: Path, refused: Refused) -> None:
    line = refused(train.main, "--storage", str(storage), "--name", "run", "--stages", stage)
    assert f"stage {stage} needs the stage {needs}" in line
    assert not (storage / "run").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_more_parts_than_patches(storage: Path, refused: Refused) -> None:
    flags = ["--data.fraction", "0.005", "--bank.size", "5000"]
    line = refused(train.main, "--storage", str(storage), "--name", "run", *flags)
    assert "bank.size is 5000" in line
    assert "lower it" in line
    assert not (storage / "run").exists()


@pytest.mark.ray
@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_corrupt_bank(damage: str, tiny_run: Path, storage: Path, refused: Refused) -> None:
    run = storage / "run"
    storage.mkdir()
    run.mkdir()
    shutil.copy(tiny_run / "config.yaml", run)
    shutil.copytree(tiny_run / "bank", run / "bank")
    bank = run / "bank" / "bank.safetensors"
    bank.write_bytes(bank.read_bytes()[:-20] if damage == "truncated" else b"\x80\x04K\x01." * 100)
    line = refused(train.main, "--storage", str(storage), "--name", "run", *TINY)
    assert "bank.safetensors is not a readable part bank" in line
    assert "stage `bank`" in line
    assert {path.name for path in run.iterdir()} == {".lease", "bank", "config.yaml"}


@pytest.mark.ray
def test_another_config_under_the_same_name(tiny_run: Path, refused: Refused) -> None:
    before = (tiny_run / "config.yaml").read_bytes()
    flags = ["--storage", str(tiny_run.parent), "--name", tiny_run.name, *TINY]
    line = refused(train.main, *flags, "--prior.depth", "2", "--seed", "4")
    assert "prior.depth: 1 -> 2" in line
    assert "seed: 0 -> 4" in line
    assert (tiny_run / "config.yaml").read_bytes() == before
