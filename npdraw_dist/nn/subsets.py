"""Subsets of at most T of L elements, each element with odds of its own: normaliser and draws.

A subset S has the probability prod_{l in S} exp(w_l) / Z; Z sums over all subsets of at most T elements. If
T = L, the elements are independent Bernoullis.
Shapes: B rows, L elements, N tables, M entries of a table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.nn.relaxations import Noise, categorical_sample

NEVER = -1e9  # stands for the log-probability -inf, but has a finite gradient


def log_normalizer(logits: Tensor, most: int) -> Tensor:
    """log Z, (B,), of logits w (B, L)."""
    if most >= logits.shape[1]:
        return F.softplus(logits).sum(1)
    return _totals(logits, most).logsumexp(1)


@torch.no_grad()
def sample_subset(logits: Tensor, most: int, generator: Noise) -> Tensor:
    """logits (B, L) -> bool (B, L), one subset for each row."""
    noise = torch.rand(logits.shape, generator=generator, device=logits.device)
    if most >= logits.shape[1]:
        return noise < torch.sigmoid(logits)
    tables = _by_count(logits, most)
    left = categorical_sample(tables[-1], generator)[:, None]  # elements still to be drawn
    # Whether an element is drawn, for each number of elements that may be left.
    draws = (noise.t()[:, :, None] >= (tables[:-1] - tables[1:]).exp()).long()
    drawn = []
    for draw in reversed(draws.unbind()):
        drawn.append(draw.gather(1, left))
        left = left - drawn[-1]
    return torch.cat(drawn[::-1], 1).bool()


@torch.no_grad()
def likeliest_subset(logits: Tensor, most: int) -> Tensor:
    """logits (B, L) -> bool (B, L), the likeliest subset: at most T elements with odds above 1."""
    best = logits.topk(min(most, logits.shape[1]), dim=1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True) & (logits > 0)


def _totals(logits: Tensor, most: int) -> Tensor:
    """The log-weight of all subsets of j elements, (B, T + 1), by joining neighbours log2(L) times."""
    size = 1 << (logits.shape[1] - 1).bit_length()
    with_it = F.pad(logits, (0, size - logits.shape[1]), value=NEVER)
    tables = torch.stack([torch.zeros_like(with_it), with_it], 2)  # (B, N, M)
    while tables.shape[1] > 1:
        first, second, others = tables[:, ::2].flip(2), tables[:, 1::2], tables.shape[2] - 1
        pairs = F.pad(second, (others, others), value=NEVER).unfold(2, others + 1, 1)[:, :, : most + 1]
        tables = (first[:, :, None] + pairs).logsumexp(3)
    return tables[:, 0, : most + 1]


@torch.no_grad()
def _by_count(logits: Tensor, most: int) -> Tensor:
    """The log-weight of all subsets of j of the first l elements, (L + 1, B, T + 1)."""
    batch, count = logits.shape
    tables = logits.new_full((count + 1, batch, most + 2), NEVER)  # with a column of impossible counts
    tables[0, :, 1].zero_()
    for number, element in enumerate(logits.unbind(1)):
        before, after = tables[number], tables[number + 1]
        torch.logaddexp(before[:, 1:], before[:, :-1] + element[:, None], out=after[:, 1:])
    return tables[:, :, 1:]
