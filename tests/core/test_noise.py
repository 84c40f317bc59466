"""Noise by row has its distribution, is independent, and does not depend on how a batch is cut."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from npdraw_dist.core.noise import Ahead, Dropout, RowNoise, dropout_noise, gumbel, normal, uniform

LIKE = torch.empty(64, 500)
DRAWS = {
    "uniform": (lambda noise, like: uniform(like.shape, noise, like), stats.uniform),
    "normal": (normal, stats.norm),
    "gumbel": (gumbel, stats.gumbel_r),
}


def rows(first: int, count: int, seed: int = 3) -> RowNoise:
    return RowNoise(seed, torch.arange(first, first + count))


@pytest.mark.parametrize("kind", DRAWS)
def test_draws_have_their_distribution(kind: str) -> None:
    draw, law = DRAWS[kind]
    found = draw(rows(0, 64), LIKE).flatten().numpy()
    assert stats.kstest(found, law.cdf).pvalue > 1e-3
    assert np.isfinite(found).all()


def test_rows_steps_draws_and_positions_are_independent() -> None:
    noise = rows(0, 64)
    first, second = (normal(noise, LIKE) for _ in range(2))
    other = normal(rows(0, 64, seed=4), LIKE)
    numbers = torch.cat([first, second, other])  # 192 series of 500
    found = torch.corrcoef(numbers).fill_diagonal_(0) * 500**0.5
    assert found.abs().max() < 5.5  # of 18,000 pairs
    assert found.std() == pytest.approx(1, abs=0.05)
    places = torch.corrcoef(numbers.T).fill_diagonal_(0) * 192**0.5
    assert places.abs().max() < 6  # of 125,000 pairs
    ahead = (first[:, 1:] * first[:, :-1]).mean() * first[:, 1:].numel() ** 0.5
    assert abs(ahead) < 4


@pytest.mark.parametrize("draw", [draw for draw, _ in DRAWS.values()], ids=DRAWS)
def test_a_row_has_its_noise_however_the_batch_is_cut(draw: Callable[..., Tensor]) -> None:
    for shape in ((12,), (12, 5), (12, 3, 7)):
        for copies in (1, 2, 3):

            def drawn(noise: RowNoise, count: int, shape: tuple[int, ...] = shape, k: int = copies) -> Tensor:
                found = [draw(noise, torch.empty(k * count, *shape[1:])) for _ in range(2)]
                return torch.stack(found).unflatten(1, (k, count))

            whole = drawn(rows(0, 12), 12)
            for cut in ((12,), (5, 7), (1, 4, 7)):
                starts = np.cumsum((0, *cut[:-1])).tolist()
                parts = [drawn(rows(start, size), size) for start, size in zip(starts, cut, strict=True)]
                torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=0)


def test_words_hashed_ahead_are_those_of_each_draw() -> None:
    """Also in a micro-batch of other rows, and in one that draws other numbers than the one before."""
    ahead = Ahead()

    def drawn(noise: RowNoise, size: int, more: bool) -> list[Tensor]:
        shapes = [(4, size), (8, 3), *([(4, 50)] if more else [(4, 5), (4, 50)])]
        return [noise.integers((4, 7), torch.int8), *map(noise.uniform, shapes)]

    for step, (size, more) in enumerate(
        [(9, True), (9, True), (9, False), (9, False), (2, False), (9, True)]
    ):
        places = torch.arange(4 * step, 4 * step + 4)
        found, alone = (drawn(RowNoise(step, places, to), size, more) for to in (ahead, None))
        torch.testing.assert_close(found, alone, rtol=0, atol=0)


def test_dropout_draws_by_row_and_what_all_rows_share_once() -> None:
    layer = torch.nn.Sequential(Dropout(0.25))
    x = torch.ones(6, 1000)
    with dropout_noise(layer, rows(0, 6)):
        whole = layer(x)
    assert (whole == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert whole.mean() == pytest.approx(1, abs=0.03)
    for start in (0, 2, 4):
        with dropout_noise(layer, rows(start, 2)):
            torch.testing.assert_close(layer(x[:2]), whole[start : start + 2], rtol=0, atol=0)
    shared = [rows(first, 2).shared(3).uniform((3, 4)) for first in (0, 2)]
    torch.testing.assert_close(*shared, rtol=0, atol=0)
    assert not torch.isin(shared[0], rows(0, 64).uniform((64, 4))).any()
