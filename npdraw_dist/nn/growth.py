"""The weights of a model with more parts than it was trained with.

A new part with weights of its own starts as a rarer twin of the old part that it resembles most: all twins of
a part together have SHARE of its probability, and a drawn old part loses at most log(1 + SHARE) nats. A prior
of `prior.table pixels` has no such weights: a new part takes the probability that its pixels give it.
Shapes: K old parts, N new parts, L places, T steps, W channels, C channels of an image, P patch side.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.nn.networks import make_posterior
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.posterior import Posterior

SHARE = 0.1  # start probability of a part's new twins under the prior, relative to that of the part


def grown(spec: ModelSpec, state: Mapping[str, Tensor], parts: Tensor) -> dict[str, Tensor]:
    """The state dict of an `NPDraw` of `spec`, which has K + N parts, from that of one with K.

    parts: (K + N, C, P, P), the first K those of `state`, or ValueError is raised.
    """
    old = state["bank_parts"]
    if not torch.equal(parts[: len(old)], old):
        raise ValueError("the first parts are not those of the model")
    if len(parts) == len(old):
        return dict(state)
    twins = torch.cdist(parts[len(old) :].flatten(1), old.flatten(1)).argmin(1)  # (N,)
    rarer = (SHARE / torch.bincount(twins, minlength=len(old))[twins]).log()  # added to logits of new parts
    fits = {} if spec.authors else _fits(spec, parts)

    def grow(groups: int, value: Tensor, logits: bool = False) -> Tensor:
        """Appends to each of `groups` groups of K rows the rows of the new parts, copied from their twins."""
        rows = value.view(groups, len(old), *value.shape[1:])
        new = rows[:, twins] + rarer.to(value.dtype) if logits else rows[:, twins]
        return torch.cat([rows, new], 1).flatten(0, 1)

    def value_of(name: str, shape: torch.Size) -> Tensor:
        value, last = state[name], name.removeprefix("prior.").removeprefix("posterior.")
        if last.endswith("bank_parts"):
            return parts.clone()
        if value.shape == shape:
            return value
        if last.startswith("head.fit."):  # as initialised, plus what training changed in the fit of the twins
            start = fits[last]
            return torch.cat([value, start[len(old) :] + value[twins] - start[twins]])
        if last.startswith("head.out."):
            return torch.cat([value, value[1 + twins]])
        if name.startswith("posterior.what."):
            return grow(spec.steps, value, name.endswith("bias"))
        if last == "drawn.weight":
            return grow(spec.grid.places, value)
        if last in ("part.weight", "drawn.code"):
            return grow(1, value)
        assert last.startswith("what_head."), f"{name} of {tuple(value.shape)} does not grow"
        return grow(1, value, name.endswith("bias"))

    with torch.device("meta"):
        empty = NPDraw(spec).state_dict()
    return {name: value_of(name, value.shape) for name, value in empty.items()}


def _fits(spec: ModelSpec, parts: Tensor) -> dict[str, Tensor]:
    """`head.fit.weight` and `head.fit.bias` of an untrained posterior of these parts."""
    with torch.random.fork_rng(devices=[]):
        posterior = make_posterior(spec)
    assert isinstance(posterior, Posterior)
    posterior.set_bank(parts)
    return {name: value for name, value in posterior.state_dict().items() if name.startswith("head.fit.")}
