"""The mistakes that are found only once Ray runs. All others are in tests/test_mistakes.py."""

import shutil
from pathlib import Path

import pytest

from npdraw_dist import train
from tests.helpers.runs import TINY, Refused


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_more_parts_than_patches_that_are_not_empty(storage: Path, refused: Refused) -> None:
    flags = ["--data.fraction", "0.05", "--bank.size", "2500"]  # of 72 x 36 patches
    line = refused(train.main, "--storage", str(storage), "--name", "run", *flags)
    assert "bank.size is 2500" in line
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
    assert {path.name for path in run.iterdir()} == {".lease", "bank", "config.yaml", "log.txt"}
