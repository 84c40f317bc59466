"""Moved images are parsed anew, and training sees them until the plain share of its budget."""

from typing import Any

import pytest
import torch

from npdraw_dist.config.load import resolve
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.augment import moves

SMALL: dict[str, Any] = {"grid": {"patch": 7, "stride": 7}, "bank": {"size": 6}}


def images(n: int = 32) -> torch.Tensor:
    return torch.randint(256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("order", ["aligned", "path"])
def test_a_moved_image_has_the_parse_of_what_is_seen(order: str) -> None:
    experiment = resolve(
        "digits", None, SMALL | {"parse": {"order": order}, "train": {"augmented": 0.5, "shift": 2}}
    )
    bank = PartBank(torch.rand(6, 1, 7, 7, generator=seeded()))
    augment, parser = moves(experiment, bank), Parser.of(experiment, bank)
    assert augment is not None
    batch = Batch.of(images(), parser(images()).z)
    found = augment(batch, 0.5, seeded())
    changed = (found.images != batch.images).flatten(1).any(1)
    assert 4 < int(changed.sum()) < 28
    expected = parser(found.images).z
    for name in ("whether", "where", "what"):
        assert torch.equal(getattr(found.z, name), getattr(expected, name))
    assert (found.what != batch.what)[changed].any()
    assert torch.equal(found.what[~changed], batch.what[~changed])


def test_the_last_share_of_the_budget_is_plain() -> None:
    train = {"augmented": 1.0, "shift": 2, "plain_share": 0.25}
    experiment = resolve("digits", None, {"model": {"kind": "vae"}, "train": train})
    augment = moves(experiment, None)
    assert augment is not None
    batch = Batch.of(images(), PartSequence.empty(32))
    assert not torch.equal(augment(batch, 0.74, seeded()).images, batch.images)
    assert augment(batch, 0.75, seeded()) is batch


def test_nothing_moves_unless_it_is_asked_for() -> None:
    assert moves(resolve("digits", None, {}), None) is None
