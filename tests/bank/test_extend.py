"""A bank on new images: its parts stay, and new ones are where it fits badly."""

import numpy as np
import pytest
import torch

from npdraw_dist.bank.build import extend_bank, nearest_parts
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartBank

RNG = np.random.default_rng(0)
OLD = RNG.integers(0, 2, (5, 16), dtype=np.uint8) * 255
NEW = RNG.integers(0, 256, (3, 16), dtype=np.uint8)
BANK = PartBank(torch.from_numpy(OLD).float().div(255).view(5, 1, 4, 4))
PATCHES = np.concatenate([OLD.repeat(40, 0), NEW.repeat(10, 0)])[RNG.permutation(230)]


def test_the_nearest_part_is_that_of_brute_force() -> None:
    x = RNG.integers(0, 256, (50, 16), dtype=np.uint8)
    apart = ((x[:, None] / 255 - OLD / 255) ** 2).sum(2)
    nearest, distance = nearest_parts(BANK, x)
    np.testing.assert_array_equal(nearest, apart.argmin(1))
    np.testing.assert_allclose(distance, apart.min(1), rtol=1e-5)
    assert (nearest_parts(BANK, OLD)[1] == 0).all()


def test_a_kept_bank_says_how_well_it_fits() -> None:
    bank, facts = extend_bank(BANK, PATCHES, BankConfig(size=5), 0)
    assert torch.equal(bank.parts, BANK.parts)
    apart = ((NEW[:, None] / 255 - OLD / 255) ** 2).sum(2).min(1)
    assert facts.objective == pytest.approx(10 * apart.sum() / 230, rel=1e-5)
    assert sum(facts.cluster_sizes) == facts.patches == 230


def test_new_parts_are_what_fitted_badly() -> None:
    bank, facts = extend_bank(BANK, PATCHES, BankConfig(size=8), 0)
    assert torch.equal(bank.parts[:5], BANK.parts)
    found = {bytes((part * 255).round().to(torch.uint8).flatten().tolist()) for part in bank.parts[5:]}
    assert found == {patch.tobytes() for patch in NEW}
    assert facts.objective == 0
    assert facts.cluster_sizes[5:] == [10, 10, 10]
    assert facts.k == 8


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        (PATCHES, r"bank\.size is 9.* all but 3 different"),
        (OLD, r"bank\.size is 9.* all but 0 different"),
        (PATCHES[:0], r"bank\.min_energy"),
    ],
)
def test_patches_that_do_not_do_are_refused(patches: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        extend_bank(BANK, patches, BankConfig(size=9), 0)
