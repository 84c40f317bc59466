"""The parser against brute force in NumPy, and its properties on images drawn from a known bank."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.parse.parser import Parse, Parser

Draw = tuple[int, int]  # place and part

# (height, width, patch, stride, channels), 1 at the end if centred; most hang over the edge.
DISJOINT: list[tuple[int, ...]] = [(28, 28, 5, 5, 1), (7, 10, 3, 3, 3), (8, 8, 4, 4, 1), (5, 9, 4, 4, 1)]
DISJOINT += [(28, 28, 5, 5, 1, 1), (10, 9, 4, 4, 3, 1)]
OVERLAPPING: list[tuple[int, ...]] = [(8, 8, 4, 2, 1), (7, 6, 3, 2, 3), (6, 9, 4, 3, 1), (5, 5, 3, 1, 1)]
OVERLAPPING += [(8, 8, 5, 4, 1, 1), (6, 8, 4, 3, 3, 1)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(
    shape: tuple[int, ...], parts: int = 6, batch: int = 9, seed: int = 0
) -> tuple[Grid, PartBank, torch.Tensor]:
    """A grid, a random bank with dark pixels in it, and images half noise, half drawn from the bank."""
    height, width, patch, stride, channels, *centred = shape
    generator = torch.Generator().manual_seed(seed)
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


def visible(
    corner: tuple[int, int], patch: int, size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The pixels of the canvas (C, H, W) that a part at `corner` covers, and those of the part."""
    first = [max(start, 0) for start in corner]
    end = [min(start + patch, side) for start, side in zip(corner, size[1:], strict=True)]
    on_canvas = (slice(None), *(slice(a, b) for a, b in zip(first, end, strict=True)))
    of_part = (slice(a - c, b - c) for a, b, c in zip(first, end, corner, strict=True))
    return on_canvas, (slice(None), *of_part)


def gain_of(canvas: NDArray, image: NDArray, part: NDArray, corner: tuple[int, int], patch: int) -> float:
    window, inside = visible(corner, patch, canvas.shape)
    seen = canvas[window]
    before, after = seen - image[window], np.maximum(seen, part[inside]) - image[window]
    return float((before**2).sum() - (after**2).sum())


def brute_force(image: NDArray, bank: NDArray, grid: Grid, steps: int, min_gain: float) -> list[Draw]:
    """Plain greedy: at each step every part at every place is tried on the canvas drawn so far."""
    image, bank = image.astype(np.float64), bank.astype(np.float64)
    draws: list[Draw] = []
    canvas, patch = np.zeros_like(image), grid.patch
    corners = [(int(r), int(c)) for r, c in grid.corners]
    for _ in range(steps):
        used = {place for place, _ in draws}
        scores = {
            (place, k): gain_of(canvas, image, part, corner, patch)
            for place, corner in enumerate(corners)
            if place not in used
            for k, part in enumerate(bank)
        }
        if not scores:
            break
        best = max(scores, key=scores.__getitem__)
        if scores[best] < min_gain or scores[best] <= 0:
            break
        draws.append(best)
        window, inside = visible(corners[best[0]], patch, canvas.shape)
        canvas[window] = np.maximum(canvas[window], bank[best[1]][inside])
    return draws


def drawn_pairs(z: PartSequence, image: int) -> set[tuple[int, int]]:
    kept = z.whether[image]
    return set(zip(z.where[image][kept].tolist(), z.what[image][kept].tolist(), strict=True))


@pytest.mark.parametrize("shape", DISJOINT + OVERLAPPING)
@pytest.mark.parametrize("seed", [0, 1])
def test_chooses_as_brute_force_greedy(shape: tuple[int, ...], seed: int) -> None:
    large = shape[0] > 10
    grid, bank, images = make(shape, parts=4 if large else 6, batch=2 if large else 8, seed=seed)
    for steps, min_gain in ((grid.places, 0.05), (max(1, grid.places // 2), 0.3)):
        z = Parser(bank, grid, steps, "ranked", min_gain)(images).z
        for index, image in enumerate(images.numpy()):
            expected = brute_force(image, bank.parts.numpy(), grid, steps, min_gain)
            assert drawn_pairs(z, index) == set(expected)


@pytest.mark.parametrize("shape", OVERLAPPING)
def test_binary_images_break_ties_as_brute_force(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, parts=5, batch=12, seed=4)
    bank, images = PartBank((bank.parts > 0.4).float()), (images > 0.5).float()
    z = Parser(bank, grid, grid.places, "raster", 0.0)(images).z
    for index, image in enumerate(images.numpy()):
        expected = brute_force(image, bank.parts.numpy(), grid, grid.places, 0.0)
        assert drawn_pairs(z, index) == set(expected)


@pytest.mark.parametrize("shape", DISJOINT)
def test_each_disjoint_place_is_its_nearest_part(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, parts=7, seed=2)
    parse = Parser(bank, grid, grid.places, "aligned", 0.1)(images)
    for index, image in enumerate(images.numpy().astype(np.float64)):
        for place, corner in enumerate(grid.corners.tolist()):
            window, inside = visible(corner, grid.patch, image.shape)
            x = image[window]
            parts = bank.parts.numpy().astype(np.float64)[(slice(None), *inside)]
            cost = ((parts - x) ** 2).sum((1, 2, 3))
            gain = (x**2).sum() - cost.min()
            assert bool(parse.z.whether[index, place]) == (gain >= 0.1)
            if gain >= 0.1:
                assert int(parse.z.what[index, place]) == cost.argmin()
                assert float(parse.gain[index, place]) == pytest.approx(gain, abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", DISJOINT)
def test_recovers_what_was_drawn(shape: tuple[int, ...], order: str) -> None:
    grid, _, _ = make(shape)
    generator = torch.Generator().manual_seed(3)
    # Each part has a base level of its own, so parts differ even where one pixel of them is visible.
    levels = torch.linspace(0.2, 1, 8)[torch.randperm(8, generator=generator), None, None, None]
    noise = torch.rand(8, shape[4], grid.patch, grid.patch, generator=generator)
    bank = PartBank((levels - 0.05 * noise).clamp(0, 1))
    z = random_sequence(grid, 8, 16, generator)
    images = render(bank.parts, z, grid)
    parse = Parser(bank, grid, grid.places, order, 1e-3)(images)
    assert torch.equal(parse.canvas, images)
    assert parse.squared_error.max() < 1e-6
    for index in range(len(z)):
        assert drawn_pairs(parse.z, index) == drawn_pairs(z, index)
    if order == "aligned":
        assert torch.equal(parse.z.whether, z.whether)
        assert torch.equal(parse.z.what, z.canonical().what)


@pytest.mark.parametrize("shape", [DISJOINT[0], DISJOINT[1], OVERLAPPING[0], OVERLAPPING[1]])
def test_orders_draw_the_same_parts_and_report_the_canvas(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, seed=5)
    parses = {order: Parser(bank, grid, grid.places, order, 0.2)(images) for order in ORDERS}
    for order, parse in parses.items():
        assert torch.equal(render(bank.parts, parse.z, grid), parse.canvas), order
        error = (parse.canvas - images).square().mean((1, 2, 3))
        torch.testing.assert_close(parse.squared_error, error)
        for index in range(len(images)):
            assert drawn_pairs(parse.z, index) == drawn_pairs(parses["aligned"].z, index)
        assert (parse.gain[parse.z.whether] >= 0.2).all()
        assert (parse.gain[~parse.z.whether] == 0).all()
        # The gains sum up to the whole fall of the squared error.
        fall = images.square().sum((1, 2, 3)) - error * images[0].numel()
        torch.testing.assert_close(parse.gain.sum(1), fall, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [DISJOINT[0], DISJOINT[1], *OVERLAPPING])
def test_more_steps_never_raise_the_error(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, seed=6)
    last = images.square().mean((1, 2, 3))
    for steps in range(1, grid.places + 1):
        parse = Parser(bank, grid, steps, "path", 0.0)(images)
        assert (parse.squared_error <= last + 1e-7).all()
        assert parse.z.whether.shape == (len(images), steps)
        assert torch.equal(render(bank.parts, parse.z, grid), parse.canvas)
        last = parse.squared_error
    dark = Parser(bank, grid, grid.places, "path", 0.0)(torch.zeros_like(images))
    assert not dark.z.whether.any()
    assert dark.squared_error.max() == 0


def equal(a: Parse, b: Parse) -> bool:
    pairs = zip((*vars(a.z).values(), a.canvas), (*vars(b.z).values(), b.canvas), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("shape", [DISJOINT[0], DISJOINT[1], OVERLAPPING[0], OVERLAPPING[1]])
def test_deterministic_and_independent_of_the_batch(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, seed=7)
    parser = Parser(bank, grid, grid.places, "ranked", 0.05)
    whole = parser(images)
    assert equal(whole, parser(images))
    parser.chunk = 4  # two whole chunks and a rest
    assert equal(whole, parser(images))
    for index in range(len(images)):
        single = parser(images[index : index + 1])
        assert torch.equal(single.z.whether[0], whole.z.whether[index])
        assert torch.equal(single.z.where[0], whole.z.where[index])
        assert torch.equal(single.z.what[0], whole.z.what[index])
    assert len(parser(images[:0]).z) == 0


@pytest.mark.parametrize(("parts", "chunk"), [(50, 512), (512, 128), (3000, 16)])
def test_a_batch_is_cut_into_equal_chunks(parts: int, chunk: int) -> None:
    bank, grid = PartBank(torch.rand(parts, 1, 4, 4)), Grid(28, 28, 4, 4)
    parser = Parser(bank, grid, grid.places, "aligned", 0.05)
    sizes = {len(images) for images in torch.split(torch.zeros(512, 1, 28, 28), parser.chunk)}
    assert sizes == {chunk}


def test_takes_images_that_are_no_contiguous_tensor() -> None:
    grid, bank, images = make(DISJOINT[1])
    parser = Parser(bank, grid, grid.places, "aligned", 0.05)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert equal(parser(images), parser(strided))


def test_refuses_what_does_not_fit() -> None:
    grid, bank, images = make(DISJOINT[2])
    with pytest.raises(UserError, match=r"parse\.order"):
        Parser(bank, grid, 4, "spiral", 0.1)
    with pytest.raises(UserError, match=r"set it to 4 in order aligned"):
        Parser(bank, grid, 3, "aligned", 0.1)
    with pytest.raises(UserError, match=r"set it to 1 to 4"):
        Parser(bank, grid, 5, "raster", 0.1)
    with pytest.raises(UserError, match=r"stage `bank`"):
        Parser(bank, Grid(8, 8, 3, 3), 4, "raster", 0.1)
    with pytest.raises(ValueError, match=r"images are \(B, 1, 8, 8\)"):
        Parser(bank, grid, 4, "raster", 0.1)(images[:, :, :7])


def dyadic(values: torch.Tensor) -> torch.Tensor:
    """Multiples of 1/256, of which 1 - x is exact."""
    return (values * 256).round() / 256


def on_white(grid: Grid) -> Grid:
    return replace(grid, background=1.0)


@pytest.mark.few(12)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", DISJOINT + OVERLAPPING)
def test_the_negative_on_white_has_the_same_parse(shape: tuple[int, ...], order: str) -> None:
    grid, bank, images = make(shape, seed=8)
    parts, images = dyadic(bank.parts), dyadic(images)
    black = Parser(PartBank(parts), grid, grid.places, order, 0.1)(images)
    white = Parser(PartBank(1 - parts), on_white(grid), grid.places, order, 0.1)(1 - images)
    assert black.z.whether.any()
    for name in ("whether", "where", "what"):
        assert torch.equal(getattr(white.z, name), getattr(black.z, name)), name
    assert torch.equal(white.canvas, 1 - black.canvas)
    assert torch.equal(white.gain, black.gain)
    assert torch.equal(white.squared_error, black.squared_error)
    torch.testing.assert_close(
        white.squared_error, (white.canvas - (1 - images)).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", [DISJOINT[1], OVERLAPPING[1]])
def test_bytes_on_white_are_parsed_as_their_negative(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape, seed=9)
    pixels = (images * 255).round().to(torch.uint8)
    black = Parser(PartBank(dyadic(bank.parts)), grid, grid.places, "path", 0.1)(pixels)
    white = Parser(PartBank(1 - dyadic(bank.parts)), on_white(grid), grid.places, "path", 0.1)(255 - pixels)
    assert torch.equal(white.canvas, 1 - black.canvas)
    assert torch.equal(white.z.where, black.z.where)
    assert torch.equal(white.z.what, black.z.what)


@pytest.mark.parametrize(("shape", "order"), [(DISJOINT[1], "aligned"), ((12, 12, 4, 2, 3), "path")])
def test_recovers_what_was_drawn_on_white(shape: tuple[int, ...], order: str) -> None:
    height, width, patch, stride, channels = shape
    grid = Grid(height, width, patch, stride, background=1.0)
    generator = torch.Generator().manual_seed(10)
    # Dark parts: the ink of each has a level of its own, so that parts differ even where little shows.
    levels = torch.linspace(0.2, 1, 8)[torch.randperm(8, generator=generator), None, None, None]
    noise = torch.rand(8, channels, patch, patch, generator=generator)
    bank = PartBank(1 - (levels - 0.05 * noise).clamp(0, 1))
    if order == "aligned":
        z = random_sequence(grid, 8, 16, generator)
    else:  # two parts that share a corner of 2 x 2 pixels, and one apart
        drawn = torch.zeros(16, grid.places, dtype=torch.bool)
        drawn[:, [0, grid.columns + 1, grid.places - 1]] = True
        whether, where = ORDERS[order].arrange(drawn, drawn.float(), grid, 3)
        z = PartSequence(whether, where, torch.randint(8, (16, 3), generator=generator))
    images = render(bank.parts, z, grid)
    parse = Parser(bank, grid, z.steps, order, 1e-3)(images)
    assert torch.equal(parse.canvas, images)
    assert (images < 1).any()
    assert (images == 1).any()
    assert parse.squared_error.max() < 1e-6
    for name in ("whether", "where", "what"):
        assert torch.equal(getattr(parse.z.canonical(), name), getattr(z.canonical(), name)), name


@pytest.mark.parametrize("shape", [DISJOINT[0], OVERLAPPING[0]])
def test_on_white_a_white_image_draws_nothing_and_a_black_one_does(shape: tuple[int, ...]) -> None:
    grid, bank, images = make(shape)
    parser = Parser(bank, on_white(grid), grid.places, "raster", 0.0)
    for white in (torch.ones_like(images), torch.full_like(images, 255, dtype=torch.uint8)):
        parse = parser(white)
        assert not parse.z.whether.any()
        assert parse.squared_error.max() == 0
        assert (parse.canvas == 1).all()
    assert parser(torch.zeros_like(images)).z.whether.any()
