"""A checkpoint brings weights and Adam's moments back bit by bit, and holds no pickle."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from safetensors import safe_open
from torch import nn
from torch.optim import AdamW

from npdraw_dist import __version__
from npdraw_dist.core.errors import OtherFormat, UserError
from npdraw_dist.core.made_by import FORMAT
from npdraw_dist.training import checkpoint
from tests.helpers.gpu import needs_gpu

MOUNT = ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=8", "npdraw"]  # smaller than a checkpoint


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


def test_weights_and_moments_come_back_bitwise(saved: tuple[Path, Net, AdamW]) -> None:
    folder, old = saved[0], saved[1:]
    new = made(2)
    assert checkpoint.restore(folder, *new) == {"step": 3, "record": {"valid/nll": 0.1}}
    assert len(new[1].state) == 4
    assert_same(old, new)
    trained(*old, 2)
    trained(*new, 2)
    assert_same(old, new)


@needs_gpu
def test_training_goes_on_on_a_gpu(tmp_path: Path) -> None:
    old, new = made(1, "cuda"), made(2, "cuda")
    trained(*old, 3)
    checkpoint.save(tmp_path, *old, {"step": 3})
    checkpoint.restore(tmp_path, *new)
    trained(*old, 2)
    trained(*new, 2)
    assert_same(old, new)


def test_weights_of_a_part(saved: tuple[Path, Net, AdamW]) -> None:
    folder, net, _ = saved
    tensors, _ = checkpoint.read(folder)
    part = checkpoint.weights(tensors, "prior.")
    assert part.keys() == net.prior.state_dict().keys()
    assert all(torch.equal(value, part[name]) for name, value in net.prior.state_dict().items())


def test_a_checkpoint_holds_no_pickle(saved: tuple[Path, Net, AdamW]) -> None:
    folder = saved[0]
    assert {file.name for file in folder.iterdir()} == {"state.safetensors", "progress.json"}
    assert json.loads((folder / "progress.json").read_text())["step"] == 3
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        assert "optimizer/prior.0.weight/exp_avg" in file.keys()  # noqa: SIM118


def spoil(file: Path, damage: str) -> None:
    content = bytearray(file.read_bytes())
    if damage == "missing":
        return file.unlink()
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "a bit":  # of the last tensor, or of the digest
        content[-5] ^= 1
    else:
        content = bytearray(b"\x80\x04K\x01." * 9)
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage", "a bit"])
def test_damage_is_told_in_a_line(saved: tuple[Path, Net, AdamW], name: str, damage: str) -> None:
    file = saved[0] / name
    spoil(file, damage)
    with pytest.raises(UserError, match="is damaged") as error:
        checkpoint.restore(saved[0], *made(2))
    assert str(saved[0]) in str(error.value)


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes what progress.json states; None removes a key."""
    file = folder / "progress.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_a_checkpoint_states_the_version_that_wrote_it(saved: tuple[Path, Net, AdamW]) -> None:
    states = json.loads((saved[0] / "progress.json").read_text())
    assert (states["version"], states["format"]) == (__version__, FORMAT)
    assert checkpoint.read(saved[0])[1] == {"step": 3, "record": {"valid/nll": 0.1}}


def test_another_version_reads_the_same_format(saved: tuple[Path, Net, AdamW]) -> None:
    for version, number in (("0.0.9", FORMAT), ("9.0.0", FORMAT)):
        rewrite(saved[0], version=version, format=number)
        assert checkpoint.restore(saved[0], *made(2))["step"] == 3


def test_another_format_is_refused_and_no_older_checkpoint_taken(tmp_path: Path) -> None:
    folders = checkpoints(tmp_path, 8, 16)
    rewrite(folders[0], version="0.3.0")
    rewrite(folders[1], version="9.0.0", format=FORMAT + 1)
    with pytest.raises(OtherFormat, match=r"000000016 was made by npdraw_dist 9\.0\.0 in format 3, and "):
        newest(tmp_path)


def test_a_full_disk_is_an_error_of_the_storage(tmp_path: Path) -> None:
    """Not of safetensors, whose error says nothing of files."""
    net = nn.Linear(64, 64)
    if os.geteuid() != 0 or subprocess.run([*MOUNT, str(tmp_path)], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with pytest.raises(OSError, match=r"cannot write .*state\.safetensors: .*No space left on device"):
            checkpoint.save(tmp_path, net, AdamW(net.parameters()), {"step": 3})
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


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


def test_a_later_generation_of_a_step_is_newer(tmp_path: Path) -> None:
    (folder,) = checkpoints(tmp_path, 8)
    shutil.copytree(folder, tmp_path / "checkpoint_000000008_1")
    assert newest(tmp_path) == (8, "checkpoint_000000008_1", [])


@pytest.mark.parametrize("generations", [[""], ["", "_1"]])
def test_a_stage_whose_first_checkpoint_is_damaged_begins_anew(
    generations: list[str], tmp_path: Path
) -> None:
    """The next one has another name, since Ray Train deletes by name."""
    (folder,) = checkpoints(tmp_path, 8)
    spoil(folder / "state.safetensors", "a bit")
    for generation in generations[1:]:
        shutil.copytree(folder, f"{folder}{generation}")
    with pytest.raises(checkpoint.FirstDamaged, match="is damaged") as caught:
        newest(tmp_path)
    assert caught.value.generation == len(generations)


def test_a_first_checkpoint_that_cannot_be_read_now_is_not_given_up(tmp_path: Path) -> None:
    checkpoints(tmp_path, 8)

    def away(folder: Path) -> None:
        raise OSError("timed out")

    local, paths = fs.LocalFileSystem(), checkpoint.by_age(fs.LocalFileSystem(), str(tmp_path))
    with pytest.raises(UserError, match=r"delete .* to start again: .*timed out") as caught:
        checkpoint.first_readable(local, str(tmp_path), paths, away)
    assert not isinstance(caught.value, checkpoint.FirstDamaged)


def test_all_damaged_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    for folder in checkpoints(tmp_path, 8, 16):
        spoil(folder / "state.safetensors", "a bit")
    with pytest.raises(UserError, match=f"delete {tmp_path} to start again: .*000000016.* is damaged"):
        newest(tmp_path)
