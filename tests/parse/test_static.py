"""The greedy choice in fixed shapes against the lazy one and against brute force."""

from dataclasses import replace

import pytest
import torch

from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartBank
from npdraw_dist.parse.greedy import GreedyChooser, StaticGreedyChooser
from npdraw_dist.parse.parser import Parser
from tests.helpers.kernels import KernelCounter
from tests.parse.test_parser import OVERLAPPING, brute_force, make

LIMITS = [(None, 0.05), (3, 0.3), (1, 0.0)]


@pytest.mark.parametrize("shape", OVERLAPPING)
@pytest.mark.parametrize(("steps", "min_gain"), LIMITS)
def test_it_chooses_what_the_lazy_one_chooses(
    shape: tuple[int, ...], steps: int | None, min_gain: float
) -> None:
    grid, bank, images = make(shape, batch=20, seed=7)
    images[3] = 0.0  # draws nothing
    settings = (bank, grid, min(steps or grid.places, grid.places), min_gain)
    lazy, static = (kind(*settings).choose(images) for kind in (GreedyChooser, StaticGreedyChooser))
    for name, ours, theirs in zip(("chosen", "what", "gain", "error"), static, lazy, strict=True):
        if name in ("chosen", "what"):
            assert torch.equal(ours, theirs), name
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not static[0][3].any()


@pytest.mark.parametrize("shape", OVERLAPPING)
def test_it_chooses_as_brute_force(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, batch=4, seed=2)
    chosen, what, _, _ = StaticGreedyChooser(bank, grid, grid.places, 0.05).choose(images)
    for index, image in enumerate(images.numpy()):
        places = chosen[index].nonzero()[:, 0].tolist()
        found = {(place, int(what[index, place])) for place in places}
        assert found == set(brute_force(image, bank.parts.numpy(), grid, grid.places, 0.05))


def test_bytes_are_parsed_as_floats() -> None:
    grid, bank, images = make(OVERLAPPING[0])
    chooser = StaticGreedyChooser(bank, grid, grid.places, 0.05)
    raw = (images * 255).round().to(torch.uint8)
    assert torch.equal(chooser.choose(raw)[1], chooser.choose(raw.float() / 255)[1])


def test_nothing_waits_for_a_gpu() -> None:
    """The lazy one asks for sizes at every step."""
    grid, bank, images = make(OVERLAPPING[0])
    for kind, waits in ((GreedyChooser, True), (StaticGreedyChooser, False)):
        chooser = kind(bank, grid, grid.places, 0.05)
        for _ in range(2):  # the first time tables of the grid are made
            with KernelCounter() as counter:
                chosen, _, gain, _ = chooser.choose(images)
                ORDERS["path"].arrange(chosen, gain, grid, grid.places)
        assert bool(counter.waits) == waits, counter.waits


def test_on_white_it_is_given_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of a GPU is the same on the negative."""
    grid, bank, images = make(OVERLAPPING[1], seed=3)
    parts, images = (bank.parts * 256).round() / 256, (images * 256).round() / 256
    monkeypatch.setattr("npdraw_dist.parse.parser.GreedyChooser", StaticGreedyChooser)
    black = Parser(PartBank(parts), grid, grid.places, "ranked", 0.1)(images)
    white = replace(grid, background=1.0)
    found = Parser(PartBank(1 - parts), white, grid.places, "ranked", 0.1)(1 - images)
    assert isinstance(Parser(bank, white, 1, "ranked", 0.1).chooser, StaticGreedyChooser)
    assert black.z.whether.any()
    assert torch.equal(found.z.where, black.z.where)
    assert torch.equal(found.z.what, black.z.what)
