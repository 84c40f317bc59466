"""The exchanged types refuse other shapes and types; a file that is not a bank is a user's mistake."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import same

FLAG, INDEX = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.int64)
IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


def sequence(batch: int = 2, steps: int = 3) -> PartSequence:
    g = torch.Generator().manual_seed(0)
    where, what = torch.randint(1, 9, (2, batch, steps), generator=g)
    return PartSequence(torch.rand(batch, steps, generator=g) < 0.5, where, what)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (PartBank, [torch.rand(4, 3, 3)]),
        (PartBank, [torch.rand(4, 1, 3, 2)]),
        (PartBank, [torch.rand(0, 1, 3, 3)]),
        (PartBank, [torch.rand(4, 1, 3, 3).double()]),
        (PartSequence, [FLAG, INDEX, INDEX[:, :2]]),
        (PartSequence, [FLAG[0], INDEX[0], INDEX[0]]),
        (PartSequence, [INDEX, INDEX, INDEX]),
        (PartSequence, [FLAG, INDEX.int(), INDEX]),
        (PartSequence, [FLAG, INDEX, INDEX.float()]),
        (Batch, [IMAGES[:1], FLAG, INDEX, INDEX]),
        (Batch, [IMAGES.float(), FLAG, INDEX, INDEX]),
        (Batch, [IMAGES, FLAG, INDEX[:, :2], INDEX]),
    ],
)
def test_other_shapes_and_types_are_refused(kind: type, wrong: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"bank must be|\(B, T\)|must be bool|int64|a batch "):
        kind(*wrong)


def test_a_batch_keeps_its_narrow_type_until_z_is_read() -> None:
    z, images = sequence(5), torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    narrow = Batch(images, z.whether, z.where.short(), z.what.short())
    for batch in (
        narrow[torch.arange(5)],
        Batch.cat([narrow[:2], narrow[2:]]),
        narrow.to(torch.device("cpu")),
        pickle.loads(pickle.dumps(narrow, 5)),
    ):
        assert (batch.where.dtype, batch.what.dtype) == (torch.int16, torch.int16)
        assert same(batch.z, z)


def test_rows_cat_and_what_canonical_clears() -> None:
    z = sequence(5)
    assert same(PartSequence.cat([z[:2], z[torch.tensor([2, 3, 4])]]), z)
    assert (len(z), z.steps) == (5, 3)
    expected = PartSequence(z.whether, z.where * z.whether, z.what * z.whether)
    assert same(z.canonical(), expected)


def test_bank_round_trip_keeps_bits_and_metadata(tmp_path: Path) -> None:
    bank = PartBank(torch.rand(4, 3, 5, 5).transpose(2, 3))
    bank.save(tmp_path / "bank.safetensors", {"k": "4"})
    assert torch.equal(PartBank.load(tmp_path / "bank.safetensors").parts, bank.parts)
    with safe_open(tmp_path / "bank.safetensors", framework="pt") as file:
        assert file.metadata() == {"k": "4"}
    assert (len(bank), bank.channels, bank.patch) == (4, 3, 5)


@pytest.mark.parametrize("kind", ["truncated", "pickle", "other key", "bad shape", "absent"])
def test_a_file_that_is_no_bank_is_a_users_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bank.safetensors"
    PartBank(torch.rand(4, 1, 5, 5)).save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"parts": [1.0, 2.0]}))
    elif kind == "absent":
        path.unlink()
    else:
        save_file({"parts": torch.rand(4, 5)} if kind == "bad shape" else {"a": torch.rand(4, 1, 5, 5)}, path)
    with pytest.raises(UserError, match=r"bank\.safetensors is not a readable part bank"):
        PartBank.load(path)
