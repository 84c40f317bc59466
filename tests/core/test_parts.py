"""The exchanged types refuse what they are not, and a bank file that is none is a user's error."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch, PartBank, PartSequence


def sequence(batch: int = 2, steps: int = 3) -> PartSequence:
    g = torch.Generator().manual_seed(0)
    shape = (batch, steps)
    return PartSequence(
        torch.rand(shape, generator=g) < 0.5,
        torch.randint(1, 9, shape, generator=g),
        torch.randint(1, 9, shape, generator=g),
    )


@pytest.mark.parametrize(
    "parts",
    [
        torch.rand(4, 3, 3),
        torch.rand(4, 1, 3, 2),
        torch.rand(0, 1, 3, 3),
        torch.rand(4, 1, 3, 3).double(),
        torch.zeros(4, 1, 3, 3, dtype=torch.uint8),
    ],
)
def test_bank_refuses_other_shapes_and_types(parts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a bank is"):
        PartBank(parts)


def test_sequence_refuses_other_shapes() -> None:
    flag, index = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.int64)
    for whether, where, what in [
        (flag, index, index[:, :2]),
        (flag, index[:1], index),
        (flag[0], index[0], index[0]),
    ]:
        with pytest.raises(ValueError, match=r"\(B, T\)"):
            PartSequence(whether, where, what)


def test_sequence_refuses_other_types() -> None:
    flag, index = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="whether is bool"):
        PartSequence(index, index, index)
    with pytest.raises(ValueError, match="int64"):
        PartSequence(flag, index.int(), index)
    with pytest.raises(ValueError, match="int64"):
        PartSequence(flag, index, index.float())


def test_batch_refuses_other_shapes_and_types() -> None:
    z, images = sequence(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert len(Batch.of(images, z)) == 2
    for wrong in (images[:1], images[:, 0], images.float()):
        with pytest.raises(ValueError, match="a batch has uint8 images"):
            Batch.of(wrong, z)
    for wrong_index in (z.where[:, :2], z.where[0]):
        with pytest.raises(ValueError, match=r"all \(B, T\)"):
            Batch(images, z.whether, wrong_index, z.what)


def test_a_batch_keeps_its_narrow_type_until_z_is_read() -> None:
    z, images = sequence(5), torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    narrow = Batch(images, z.whether, z.where.short(), z.what.short())
    assert sum(tensor.nbytes for tensor in vars(narrow).values()) == 5 * (16 + 3 * (1 + 2 + 2))
    for batch in (
        narrow[torch.arange(5)],
        Batch.cat([narrow[:2], narrow[2:]]),
        narrow.to(torch.device("cpu")),
        pickle.loads(pickle.dumps(narrow, 5)),
    ):
        assert (batch.where.dtype, batch.what.dtype) == (torch.int16, torch.int16)
        for name in ("whether", "where", "what"):
            assert torch.equal(getattr(batch.z, name), getattr(z, name))


def test_rows_cat_and_bytes() -> None:
    z = sequence(5)
    again = PartSequence.cat([z[:2], z[torch.tensor([2, 3, 4])]])
    for name in ("whether", "where", "what"):
        assert torch.equal(getattr(again, name), getattr(z, name))
    assert (len(z), z.steps) == (5, 3)
    batch = Batch.of(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), z)
    assert sum(tensor.nbytes for tensor in vars(batch).values()) == 5 * (16 + 3 * (1 + 8 + 8))
    assert len(batch[1:3]) == 2


def test_canonical_clears_only_what_is_ignored() -> None:
    z = sequence()
    canonical = z.canonical()
    assert torch.equal(canonical.whether, z.whether)
    assert torch.equal(canonical.where[z.whether], z.where[z.whether])
    assert torch.equal(canonical.what[z.whether], z.what[z.whether])
    assert not canonical.where[~z.whether].any()
    assert not canonical.what[~z.whether].any()


def test_bank_round_trip_keeps_bits_and_metadata(tmp_path: Path) -> None:
    bank = PartBank(torch.rand(4, 3, 5, 5).transpose(2, 3))
    bank.save(tmp_path / "bank.safetensors", {"k": "4"})
    assert torch.equal(PartBank.load(tmp_path / "bank.safetensors").parts, bank.parts)
    with safe_open(tmp_path / "bank.safetensors", framework="pt") as file:
        assert file.metadata() == {"k": "4"}
    assert (len(bank), bank.channels, bank.patch) == (4, 3, 5)


@pytest.mark.parametrize(
    "kind", ["noise", "empty", "truncated", "pickle", "other key", "bad shape", "absent"]
)
def test_a_file_that_is_no_bank_is_a_users_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bank.safetensors"
    PartBank(torch.rand(4, 1, 5, 5)).save(path)
    whole = path.read_bytes()
    if kind == "noise":
        path.write_bytes(bytes(range(256)) * 4)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(whole[:-7])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"parts": [1.0, 2.0]}))
    elif kind == "other key":
        save_file({"weights": torch.rand(4, 1, 5, 5)}, path)
    elif kind == "bad shape":
        save_file({"parts": torch.rand(4, 5)}, path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"bank\.safetensors is not a readable part bank"):
        PartBank.load(path)
