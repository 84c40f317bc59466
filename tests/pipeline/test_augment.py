"""Moved images are parsed anew, and training sees them until the plain end of its budget."""

from typing import Any

import pytest
import torch

from npdraw_dist.config.load import resolve
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.stage_job import moves

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
    augment, parser = moves(experiment, bank, "vae"), Parser.of(experiment, bank)
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


@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_the_end_of_the_budget_is_plain(stage: str) -> None:
    train = {"augmented": 1.0, "shift": 2}
    own = {stage: {"images": 1000, "plain_images": 250}}
    experiment = resolve("digits", None, {"model": {"kind": "vae"}, "train": train, **own})
    augment = moves(experiment, None, stage)
    assert augment is not None
    batch = Batch.of(images(), PartSequence.empty(32))
    assert not torch.equal(augment(batch, 0.74, seeded()).images, batch.images)
    assert augment(batch, 0.75, seeded()) is batch


def test_nothing_moves_unless_it_is_asked_for() -> None:
    assert moves(resolve("digits", None, {"train": {"augmented": 0}}), None, "vae") is None


@pytest.mark.parametrize("kind", ["npdraw", "vae"])
def test_on_white_moved_images_have_no_black_edge(kind: str) -> None:
    white = {"grid": SMALL["grid"] | {"background": "white"}, "bank": SMALL["bank"]}
    train = {"augmented": 1.0, "shift": 4}
    experiment = resolve("digits", None, white | {"model": {"kind": kind}, "train": train})
    bank = PartBank(torch.rand(6, 1, 7, 7, generator=seeded())) if kind == "npdraw" else None
    augment = moves(experiment, bank, "vae")
    assert augment is not None
    plain = torch.full((32, 1, 28, 28), 255, dtype=torch.uint8)
    z = PartSequence.empty(32) if bank is None else Parser.of(experiment, bank)(plain).z
    found = augment(Batch.of(plain, z), 0.0, seeded())
    assert (found.images == 255).all()
    assert not found.whether.any()
