"""The parser against brute force in NumPy, and its properties on images drawn from a known bank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.parse.greedy import GreedyChooser, StaticGreedyChooser
from npdraw_dist.parse.parser import Parser
from npdraw_dist.system.errors import UserError
from tests.helpers.gpu import Waits
from tests.helpers.tiny_models import same, seeded

Draw = tuple[int, int]  # place and part

# (height, width, patch, stride, channels), 1 at the end if centred; most hang over the edge.
DISJOINT: list[tuple[int, ...]] = [(7, 10, 3, 3, 3), (8, 8, 4, 4, 1), (10, 9, 4, 4, 3, 1)]
OVERLAPPING: list[tuple[int, ...]] = [(8, 8, 4, 2, 1), (7, 6, 3, 2, 3), (5, 5, 3, 1, 1), (8, 8, 5, 4, 1, 1)]


def make(
    shape: tuple[int, ...], parts: int = 6, batch: int = 9, seed: int = 0
) -> tuple[Grid, PartBank, torch.Tensor]:
    """A grid, a random bank with dark pixels in it, and images half noise, half drawn from the bank."""
    height, width, patch, stride, channels, *centred = shape
    generator = seeded(seed)
    grid = Grid(height, width, patch, stride, bool(centred))
    bank = torch.rand(parts, channels, patch, patch, generator=generator)
    bank = bank * (torch.rand(parts, 1, patch, patch, generator=generator) < 0.6)
    images = torch.rand(batch, channels, height, width, generator=generator)
    z = random_sequence(grid, parts, batch, generator)
    drawn = render(bank, z, grid)
    mixed = torch.where(torch.arange(batch)[:, None, None, None] % 2 == 0, images * 0.2 + 0.8 * drawn, images)
    return grid, PartBank(bank), mixed


def random_sequence(grid: Grid, parts: int, batch: int, generator: torch.Generator) -> PartSequence:
    shape = (batch, grid.places)
    whether = torch.rand(shape, generator=generator) < 0.5
    where = torch.arange(grid.places).expand(shape)
    return PartSequence(whether, where, torch.randint(parts, shape, generator=generator))


def brute_force(image: NDArray, bank: NDArray, grid: Grid, steps: int, min_gain: float) -> set[Draw]:
    """Plain greedy: at each step every part at every place is tried on the canvas drawn so far."""
    image, bank, patch = image.astype(np.float64), bank.astype(np.float64), grid.patch
    shown: dict[Draw, NDArray] = {}
    for place, (row, column) in enumerate(grid.corners.tolist()):
        for k, part in enumerate(bank):
            padded = np.pad(np.zeros_like(image), ((0, 0), (patch, patch), (patch, patch)))
            padded[:, row + patch : row + 2 * patch, column + patch : column + 2 * patch] = part
            shown[place, k] = padded[:, patch:-patch, patch:-patch]
    draws: set[Draw] = set()
    canvas = np.zeros_like(image)
    for _ in range(steps):
        left = shown.keys() - {(place, k) for place, _ in draws for k in range(len(bank))}
        before = ((canvas - image) ** 2).sum()
        after = {draw: ((np.maximum(canvas, shown[draw]) - image) ** 2).sum() for draw in sorted(left)}
        gains = {draw: before - error for draw, error in after.items()}
        best = max(gains, key=gains.__getitem__, default=None)
        if best is None or gains[best] < min_gain or gains[best] <= 0:
            break
        draws.add(best)
        canvas = np.maximum(canvas, shown[best])
    return draws


def drawn_pairs(z: PartSequence, image: int) -> set[Draw]:
    kept = z.whether[image]
    return set(zip(z.where[image][kept].tolist(), z.what[image][kept].tolist(), strict=True))


@pytest.mark.parametrize("order", ["ranked", "raster"])
@pytest.mark.parametrize("shape", DISJOINT + OVERLAPPING)
def test_chooses_as_brute_force_greedy(shape: tuple[int, ...], order: str) -> None:
    """The gain decides in both orders which T parts stay."""
    grid, bank, images = make(shape, batch=6)
    black_white = PartBank((bank.parts > 0.4).float()), (images > 0.5).float()  # with ties
    cases = [(grid.places, 0.05, (bank, images)), (max(1, grid.places // 2), 0.3, (bank, images))]
    for steps, min_gain, (bank, images) in (*cases, (grid.places, 0.0, black_white)):
        z = Parser(bank, grid, steps, order, min_gain)(images).z
        for index, image in enumerate(images.numpy()):
            expected = brute_force(image, bank.parts.numpy(), grid, steps, min_gain)
            assert drawn_pairs(z, index) == expected


@pytest.mark.parametrize("shape", OVERLAPPING)
def test_the_choice_in_fixed_shapes_is_the_lazy_one(shape: tuple[int, ...]) -> None:
    """The chooser for a GPU reads no size, for which the host would wait."""
    grid, bank, images = make(shape, batch=20, seed=7)
    images = (images * 255).round().to(torch.uint8)
    images[3] = 0  # draws nothing
    for steps, min_gain in ((grid.places, 0.05), (3, 0.3), (1, 0.0)):
        settings = (bank, grid, steps, min_gain)
        lazy, static = (kind(*settings).choose(images) for kind in (GreedyChooser, StaticGreedyChooser))
        assert torch.equal(static[0], lazy[0])
        assert torch.equal(static[1], lazy[1])
        for ours, theirs in zip(static[2:], lazy[2:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not static[0][3].any()
        found = StaticGreedyChooser(*settings).choose(images.float() / 255)
        assert torch.equal(found[1], static[1])


def test_nothing_waits_for_a_gpu() -> None:
    grid, bank, images = make(OVERLAPPING[0])
    for kind, waits in ((GreedyChooser, True), (StaticGreedyChooser, False)):
        chooser = kind(bank, grid, grid.places, 0.05)
        for _ in range(2):  # the first time tables of the grid are made
            with Waits() as found:
                chosen, _, gain, _ = chooser.choose(images)
                ORDERS["path"].arrange(chosen, gain, grid, grid.places)
        assert bool(found.seen) == waits, found.seen


@pytest.mark.parametrize("background", [0.0, 1.0])
@pytest.mark.parametrize(
    ("shape", "order"), [*((DISJOINT[0], order) for order in ORDERS), ((12, 12, 4, 2, 3), "path")]
)
def test_recovers_what_was_drawn(shape: tuple[int, ...], order: str, background: float) -> None:
    grid, generator = replace(make(shape)[0], background=background), seeded(3)
    # The ink of each part has a level of its own: parts differ even where one pixel of them is visible.
    levels = torch.linspace(0.2, 1, 8)[torch.randperm(8, generator=generator), None, None, None]
    noise = torch.rand(8, shape[4], grid.patch, grid.patch, generator=generator)
    bank = PartBank((background - (levels - 0.05 * noise).clamp(0, 1)).abs())
    if grid.disjoint:
        z = random_sequence(grid, 8, 16, generator)
        steps = grid.places
    else:  # two parts that share a corner of 2 x 2 pixels, and one apart
        drawn = torch.zeros(16, grid.places, dtype=torch.bool)
        drawn[:, [0, grid.columns + 1, grid.places - 1]] = True
        whether, where = ORDERS[order].arrange(drawn, drawn.float(), grid, 3)
        z = PartSequence(whether, where, torch.randint(8, (16, 3), generator=generator))
        steps = 3
    images = render(bank.parts, z, grid)
    parse = Parser(bank, grid, steps, order, 1e-3)(images)
    assert torch.equal(render(bank.parts, parse.z, grid), images)
    assert (images != background).any()
    assert (images == background).any()
    assert parse.squared_error.max() < 1e-6
    for index in range(len(z)):
        assert drawn_pairs(parse.z, index) == drawn_pairs(z, index)
    assert order != "aligned" or same(parse.z.canonical(), z.canonical())


@pytest.mark.parametrize("shape", [DISJOINT[0], OVERLAPPING[0], OVERLAPPING[1]])
def test_orders_draw_the_same_parts_and_report_the_error(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, seed=5)
    parsers = {order: Parser(bank, grid, grid.places, order, 0.2) for order in ORDERS}
    parses = {order: parser(images) for order, parser in parsers.items()}
    for order, parse in parses.items():
        error = (render(bank.parts, parse.z, grid) - images).square().mean((1, 2, 3))
        torch.testing.assert_close(parse.squared_error, error)
        for index in range(len(images)):
            assert drawn_pairs(parse.z, index) == drawn_pairs(parses["aligned"].z, index)
        chosen, _, gain, _ = parsers[order].chooser.choose(images)
        assert (gain[chosen] >= 0.2).all()
        assert (gain[~chosen] == 0).all()
        # The gains sum up to the whole fall of the squared error.
        fall = images.square().sum((1, 2, 3)) - error * images[0].numel()
        torch.testing.assert_close(gain.sum(1), fall, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [DISJOINT[0], OVERLAPPING[0], OVERLAPPING[1]])
def test_deterministic_and_independent_of_the_batch(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, seed=7)
    parser = Parser(bank, grid, grid.places, "ranked", 0.05)
    whole = parser(images)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for again in (parser(images), parser(strided)):
        assert same(again.z, whole.z)
    parser.chunk = 4  # two whole chunks and a rest
    assert same(parser(images).z, whole.z)
    for index in range(len(images)):
        assert same(parser(images[index : index + 1]).z, whole.z[index : index + 1])
    assert len(parser(images[:0]).z) == 0


def test_refuses_what_does_not_fit() -> None:
    grid, bank, images = make(DISJOINT[1])
    for says, places, steps, order in (
        (r"parse\.order", grid, 4, "spiral"),
        ("4 in order aligned", grid, 3, "aligned"),
        ("1 to 4", grid, 5, "raster"),
        ("stage `bank`", Grid(8, 8, 3, 3), 4, "raster"),
    ):
        with pytest.raises(UserError, match=says):
            Parser(bank, places, steps, order, 0.1)
    for says, wrong in ((r"not torch\.int64", images.long()), ("images must be", images[:, :, :7])):
        with pytest.raises(ValueError, match=says):
            Parser(bank, grid, 4, "raster", 0.1)(wrong)


def dyadic(values: torch.Tensor) -> torch.Tensor:
    """Multiples of 1/256, of which 1 - x is exact."""
    return (values * 256).round() / 256


@pytest.mark.parametrize("chooser", [GreedyChooser, StaticGreedyChooser])
@pytest.mark.parametrize(
    ("shape", "order"), [(DISJOINT[2], "aligned"), (OVERLAPPING[1], "path"), (OVERLAPPING[3], "ranked")]
)
def test_the_negative_on_white_has_the_same_parse(
    shape: tuple[int, ...], order: str, chooser: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npdraw_dist.parse.parser.GreedyChooser", chooser)
    grid, bank, images = make(shape, seed=8)
    parts, pixels = dyadic(bank.parts), (images * 255).round().to(torch.uint8)
    on_white = Parser(PartBank(1 - parts), replace(grid, background=1.0), grid.places, order, 0.1)
    on_black = Parser(PartBank(parts), grid, grid.places, order, 0.1)
    for image, negative in ((dyadic(images), 1 - dyadic(images)), (pixels, 255 - pixels)):
        black, white = on_black(image), on_white(negative)
        assert black.z.whether.any()
        assert same(white.z, black.z)
        assert torch.equal(white.squared_error, black.squared_error)
    for empty in (torch.ones_like(images), torch.full_like(pixels, 255)):
        parse = on_white(empty)
        assert not parse.z.whether.any()
        assert parse.squared_error.max() == 0
    assert on_white(torch.zeros_like(images)).z.whether.any()
