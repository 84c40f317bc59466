"""The numbers that may decide between trials, in nats per validation image: less is better."""

from dataclasses import dataclass
from typing import Literal

from npdraw_dist.config.load import nearest
from npdraw_dist.core.errors import UserError

# As Tune sees each report: what decides, and the images seen so far.
SCORE, IMAGES = "score", "images"


@dataclass(frozen=True)
class SelectionMetric:
    """A column of the results. While `stage` trains, `sign` times its reported `key` stands for it."""

    stage: Literal["prior", "vae"]
    key: str
    sign: int


SELECTION_METRICS = {
    "valid_nll": SelectionMetric("vae", "valid/elbo", -1),
    "valid_prior_nll": SelectionMetric("prior", "valid/nll", 1),
}


def require_metric(name: str) -> None:
    """Raises UserError unless `name` is a key of SELECTION_METRICS; test numbers never decide."""
    if name not in SELECTION_METRICS:
        known = ", ".join(SELECTION_METRICS)
        why = "; test numbers are reported but never decide" if name.startswith("test") else ""
        raise UserError(
            f"unknown --metric {name!r}{nearest(name, list(SELECTION_METRICS))} (known: {known}{why})"
        )
