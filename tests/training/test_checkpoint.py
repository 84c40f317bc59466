"""A checkpoint brings weights and Adam's moments back bit by bit, and holds no pickle."""

import errno
import json
import resource
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pyarrow import fs
from torch import nn
from torch.optim import AdamW

from npdraw_dist.system.errors import OtherFormat, UserError
from npdraw_dist.system.made_by import FORMAT
from npdraw_dist.system.version import __version__
from npdraw_dist.training import checkpoint
from tests.helpers.gpu import on_gpu


class Net(nn.Module):
    """Nested names, a buffer, and a parameter that is never trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.prior = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("bank", torch.randn(2, 2))


def made(seed: int, device: str = "cpu") -> tuple[Net, AdamW]:
    net = Net(seed).to(device)
    return net, AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, fused=True)


def trained(net: Net, optimizer: AdamW, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net.prior(torch.randn(5, 3, generator=generator).to(net.frozen.device)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Net, AdamW]:
    net, optimizer = made(1)
    trained(net, optimizer, 3)
    checkpoint.save(tmp_path, net, optimizer, {"step": 3, "record": {"valid/nll": 0.1}})
    return tmp_path, net, optimizer


def assert_same(a: tuple[Net, AdamW], b: tuple[Net, AdamW]) -> None:
    for (name, one), (_, other) in zip(a[0].state_dict().items(), b[0].state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(a[0].parameters(), b[0].parameters(), strict=True):
        states = a[1].state.get(one, {}), b[1].state.get(other, {})
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key
            assert value.dtype == states[1][key].dtype


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_weights_and_moments_come_back_bitwise_and_training_goes_on(device: str, tmp_path: Path) -> None:
    old, new = made(1, device), made(2, device)
    trained(*old, 3)
    checkpoint.save(tmp_path, *old, {"step": 3})
    assert checkpoint.restore(tmp_path, *new) == {"step": 3}
    assert len(new[1].state) == 4
    assert_same(old, new)
    trained(*old, 2)
    trained(*new, 2)
    assert_same(old, new)


def test_a_checkpoint_holds_no_pickle_and_parts_can_be_read(saved: tuple[Path, Net, AdamW]) -> None:
    folder, net, _ = saved
    assert {file.name for file in folder.iterdir()} == {"state.safetensors", "progress.json"}
    part = checkpoint.weights(checkpoint.read(folder)[0], "prior.")
    assert part.keys() == net.prior.state_dict().keys()
    assert all(torch.equal(value, part[name]) for name, value in net.prior.state_dict().items())


def spoil(file: Path, damage: str) -> None:
    content = bytearray(file.read_bytes())
    if damage == "missing":
        return file.unlink()
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:  # a bit of the last tensor, or of the digest
        content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "a bit"])
def test_damage_is_an_error_of_one_line(saved: tuple[Path, Net, AdamW], name: str, damage: str) -> None:
    spoil(saved[0] / name, damage)
    with pytest.raises(UserError, match="is damaged") as error:
        checkpoint.restore(saved[0], *made(2))
    assert str(saved[0]) in str(error.value)


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes what progress.json states."""
    file = folder / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("version", ["0.0.9", "9.0.0"])
def test_another_version_reads_the_same_format(saved: tuple[Path, Net, AdamW], version: str) -> None:
    states = json.loads((saved[0] / "progress.json").read_text())
    assert (states["version"], states["format"]) == (__version__, FORMAT)
    rewrite(saved[0], version=version)
    assert checkpoint.restore(saved[0], *made(2)) == {"step": 3, "record": {"valid/nll": 0.1}}


def test_another_format_is_refused_and_no_older_checkpoint_taken(tmp_path: Path) -> None:
    folders = checkpoints(tmp_path, 8, 16)
    rewrite(folders[1], version="9.0.0", format=FORMAT + 1)
    with pytest.raises(OtherFormat, match=r"000000016 was made by npdraw_dist 9\.0\.0"):
        newest(tmp_path)


def test_a_full_disk_is_an_error_of_the_storage(tmp_path: Path) -> None:
    """The error of safetensors names no file. A limit on the size of files fails as a full disk does."""
    net, limits = nn.Linear(64, 64), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*state\.safetensors: .*File too large"):
            checkpoint.save(tmp_path, net, AdamW(net.parameters()), {"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def checkpoints(run: Path, *steps: int) -> list[Path]:
    """A run of saved checkpoints of these steps."""
    net, optimizer = made(1)
    folders = []
    for step in steps:
        trained(net, optimizer, 1)
        folders.append(run / f"checkpoint_{step:09d}")
        folders[-1].mkdir(parents=True)
        record = {"valid/nll": abs(step - 90.0)}
        checkpoint.save(folders[-1], net, optimizer, {"step": step, "record": record})
    return folders


def newest(run: Path) -> tuple[int, str, list[str]] | None:
    local = fs.LocalFileSystem()
    paths = checkpoint.by_age(local, str(run))
    found = checkpoint.first_readable(local, str(run), paths, lambda folder: checkpoint.read(folder)[1])
    return None if found is None else (found.loaded["step"], Path(found.path).name, found.damaged)


def test_the_newest_readable_checkpoint_is_taken(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    folders = checkpoints(tmp_path, 8, 90, 1000)
    (tmp_path / "metrics.jsonl").write_text("")
    assert newest(tmp_path) == (1000, "checkpoint_000001000", [])
    spoil(folders[2] / "state.safetensors", "truncated")
    spoil(folders[1] / "progress.json", "missing")
    step, name, damaged = newest(tmp_path) or (0, "", [])
    assert (step, name) == (8, "checkpoint_000000008")
    assert [line.split(":")[0] for line in damaged] == [str(folders[2]), str(folders[1])]


@pytest.mark.parametrize(("order", "expected"), [("min", [90, 8, 1000]), ("max", [1000, 8, 90])])
def test_ranked_by_a_number_of_their_records(order: Any, expected: list[int], tmp_path: Path) -> None:
    folders = checkpoints(tmp_path, 8, 90, 1000)
    criterion = checkpoint.Criterion("valid/nll", order)

    def ranked() -> list[int]:
        paths = checkpoint.by_score(fs.LocalFileSystem(), str(tmp_path), criterion)
        return [int(path.rpartition("_")[2]) for path in paths]

    assert ranked() == expected
    spoil(folders[1] / "progress.json", "missing")
    assert ranked() == [step for step in expected if step != 90] + [90]


@pytest.mark.parametrize("order", ["min", "max"])
def test_of_equal_checkpoints_the_newer_is_better(order: Any, tmp_path: Path) -> None:
    folders = checkpoints(tmp_path, 8, 90, 1000)
    for folder in folders:
        progress = json.loads((folder / checkpoint.PROGRESS).read_text())
        (folder / checkpoint.PROGRESS).write_text(json.dumps({**progress, "record": {"valid/nll": 7.0}}))
    ranked = checkpoint.by_score(
        fs.LocalFileSystem(), str(tmp_path), checkpoint.Criterion("valid/nll", order)
    )
    assert ranked == [str(folder) for folder in reversed(folders)]


@pytest.mark.parametrize("generations", [1, 2])
def test_a_stage_whose_first_checkpoint_is_damaged_begins_anew(generations: int, tmp_path: Path) -> None:
    """The next one has another name, since Ray Train deletes by name."""
    (folder,) = checkpoints(tmp_path, 8)
    for generation in range(1, generations):
        shutil.copytree(folder, f"{folder}_{generation}")
        assert newest(tmp_path) == (8, f"{folder.name}_{generation}", [])
    for each in tmp_path.iterdir():
        spoil(each / "state.safetensors", "a bit")
    with pytest.raises(checkpoint.FirstDamaged, match="is damaged") as caught:
        newest(tmp_path)
    assert caught.value.generation == generations


@pytest.mark.parametrize("steps", [[8], [8, 16]])
def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(
    steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints(tmp_path, *steps)
    monkeypatch.setattr(checkpoint, "sha256", Mock(side_effect=OSError(errno.EIO, "timed out")))
    with pytest.raises(OSError, match="timed out"):
        newest(tmp_path)


def test_the_next_generation_is_above_that_of_every_damaged_checkpoint(tmp_path: Path) -> None:
    """Otherwise two checkpoints would have one name, and Ray Train deletes by name."""
    first, second = checkpoints(tmp_path, 8, 16)
    rewrite(first, generation=0)
    shutil.copytree(second, f"{second}_1")
    for folder in tmp_path.glob("*16*"):
        spoil(folder / "state.safetensors", "a bit")
    found = checkpoint.newest(fs.LocalFileSystem(), str(tmp_path), lambda folder: checkpoint.read(folder)[1])
    assert found is not None
    assert (found.generation, found.path) == (2, str(first))


def test_all_damaged_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    for folder in checkpoints(tmp_path, 8, 16):
        spoil(folder / "state.safetensors", "a bit")
    with pytest.raises(UserError, match=f"delete {tmp_path} to start again: .*000000016.* is damaged"):
        newest(tmp_path)
