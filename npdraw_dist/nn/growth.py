"""The weights of a model with more parts than it was trained with.

A new part starts as a rarer twin of the old part that it resembles most: it has that part's embedding and its
logits less a constant, so that all twins of an old part together have SHARE of its probability. The old parts
keep their probabilities relative to each other; each drawn one loses at most log(1 + SHARE) nats.
Shapes: K old parts, N new parts, L places, T steps, W channels, C channels of an image, P patch side.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.nn.npdraw import NPDraw, make_posterior
from npdraw_dist.nn.posterior import Posterior

SHARE = 0.1  # start probability of a part's new twins under the prior, relative to that of the part


def grown(spec: ModelSpec, state: Mapping[str, Tensor], parts: Tensor) -> dict[str, Tensor]:
    """The state dict of an `NPDraw` of `spec`, which has K + N parts, from that of one with K.

    state: the model with K parts, which differs from `spec` in its parts alone. parts: (K + N, C, P, P), the
    first K those of `state`. Raises ValueError if they differ.
    """
    old = state["bank_parts"]
    if not torch.equal(parts[: len(old)], old):
        raise ValueError("the first parts are not those of the model")
    if len(parts) == len(old):
        return dict(state)
    twins = torch.cdist(parts[len(old) :].flatten(1), old.flatten(1)).argmin(1)
    growth = _Growth(spec, state, parts, twins)
    with torch.device("meta"):
        empty = NPDraw(spec).state_dict()
    return {name: growth.value(name, value.shape) for name, value in empty.items()}


class _Growth:
    """twins: (N,), the old part that each new one resembles most."""

    def __init__(self, spec: ModelSpec, state: Mapping[str, Tensor], parts: Tensor, twins: Tensor) -> None:
        self.spec, self.state, self.parts, self.twins = spec, state, parts, twins
        self.old = len(parts) - len(twins)
        counts = torch.bincount(twins, minlength=self.old)[twins]
        self.rarer = (SHARE / counts).log()  # (N,), added to the logits of new parts
        self.fits = _fits(spec, parts) if not spec.authors else {}

    def value(self, name: str, shape: torch.Size) -> Tensor:
        """The tensor `name`, of `shape`."""
        value = self.state[name]
        last = name.removeprefix("prior.").removeprefix("posterior.")
        if last.endswith("bank_parts"):
            return self.parts.clone()
        if last == "drawn.pixels.0.weight":
            return value * self._scale()[0]
        if last == "drawn.pixels.0.bias":
            return value + self._scale()[1] * self.state[name.replace("bias", "weight")].sum(1)
        if value.shape == shape:
            return value
        if name.startswith("posterior.fit."):
            return self._fit(name, value)
        if name.startswith("posterior.head."):
            return torch.cat([value, value[1 + self.twins]])
        if name.startswith("posterior.what."):
            return self._by(value, self.spec.steps, name.endswith("bias"))
        if last == "drawn.weight":
            return self._by(value, self.spec.grid.places)
        if last in ("part.weight", "drawn.code"):
            return self._by(value, 1)
        assert last.startswith("what_head."), f"{name} of {tuple(value.shape)} does not grow"
        return self._by(value, 1, name.endswith("bias"))

    def _by(self, value: Tensor, groups: int, rarer: bool = False) -> Tensor:
        """Appends to each of `groups` groups of K rows the rows of the new parts, copied from their twins."""
        rows = value.view(groups, self.old, *value.shape[1:])
        new = rows[:, self.twins]
        if rarer:
            new = new + self.rarer.to(new.dtype)
        return torch.cat([rows, new], 1).flatten(0, 1)

    def _fit(self, name: str, value: Tensor) -> Tensor:
        """The fit initialised at the new parts, plus what training changed in the fit of their twins."""
        start = self.fits[name.removeprefix("posterior.")]
        return torch.cat([value, start[self.old :] + value[self.twins] - start[self.twins]])

    def _scale(self) -> tuple[float, float]:
        """Scale and shift that keep the codes, since the table scales pixels by the moments of all parts.

        x = (x' s' + m' - m) / s: x is scaled by the old parts' mean m and standard deviation s, x' by those
        of all parts.
        """
        old, new = self.parts[: self.old], self.parts
        deviation = max(float(old.std(correction=0)), 1e-6)
        scale = max(float(new.std(correction=0)), 1e-6) / deviation
        return scale, float(new.mean() - old.mean()) / deviation


def _fits(spec: ModelSpec, parts: Tensor) -> dict[str, Tensor]:
    """`fit.weight` and `fit.bias` of an untrained posterior of these parts."""
    with torch.random.fork_rng(devices=[]):
        posterior = make_posterior(spec)
    assert isinstance(posterior, Posterior)
    posterior.set_bank(parts)
    return {name: value for name, value in posterior.state_dict().items() if name.startswith("fit.")}
