"""Subsets of at most T of L elements, each element with odds of its own: normaliser and draws.

A subset S has the probability prod_{l in S} exp(w_l) / Z; Z sums over all subsets of at most T elements. With
T = L the elements are independent Bernoullis. Shapes: B rows, L elements.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.nn.relaxations import categorical_sample

NEVER = -1e9  # a log-probability of zero whose gradient is finite


def log_normalizer(logits: Tensor, most: int) -> Tensor:
    """log Z, (B,), of logits w (B, L)."""
    if most >= logits.shape[1]:
        return F.softplus(logits).sum(1)
    return _by_count(logits, most)[-1].logsumexp(1)


@torch.no_grad()
def sample_subset(logits: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """logits (B, L) -> bool (B, L): one subset for each row."""
    noise = torch.rand(logits.shape, generator=generator, device=logits.device)
    if most >= logits.shape[1]:
        return noise < torch.sigmoid(logits)
    tables = _by_count(logits, most)
    left = categorical_sample(tables[-1], generator)[:, None]  # elements still to be drawn
    drawn = []
    for element, (before, after) in reversed(list(enumerate(pairwise(tables)))):
        without = (before.gather(1, left) - after.gather(1, left)).exp()
        drawn.append(noise[:, element, None] >= without)
        left = left - drawn[-1].long()
    return torch.cat(drawn[::-1], 1)


@torch.no_grad()
def likeliest_subset(logits: Tensor, most: int) -> Tensor:
    """logits (B, L) -> bool (B, L): the likeliest subset, of the elements with odds above 1."""
    best = logits.topk(min(most, logits.shape[1]), dim=1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True) & (logits > 0)


def _by_count(logits: Tensor, most: int) -> list[Tensor]:
    """L + 1 tables (B, T + 1): the log-weight of all subsets of j of the first l elements."""
    table = torch.full_like(logits[:, :1], NEVER).repeat(1, most + 1)
    table[:, 0].zero_()
    tables = [table]
    for element in logits.unbind(1):
        with_it = F.pad(tables[-1][:, :-1] + element[:, None], (1, 0), value=NEVER)
        tables.append(torch.logaddexp(tables[-1], with_it))
    return tables
