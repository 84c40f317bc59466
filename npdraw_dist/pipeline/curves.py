"""Which metrics of a run are plotted in curves.png, and under what names."""

import math
from collections.abc import Mapping, Sequence

from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.measure.curves import Line, Panel
from npdraw_dist.training.metrics_log import Record

SURROGATE = "training, relaxed draws (no bound)"
# Title -> its metrics and their names. Relaxed draws are only in train/surrogate, hard ones in train/elbo.
PRIOR = {"prior: -log p(z) of the parses": {"train/nll": "training", "valid/nll": "validation"}}
BOUNDS = {
    "ELBO": {"train/surrogate": SURROGATE, "train/elbo": "training", "valid/elbo": "validation"},
    "log p(x|z), validation": {"valid/reconstruction": "validation"},
}
LOSS = {"loss, with all its weights": {"train/loss": "training"}}
KL, KL_TITLE = "valid/kl", "parts of KL(q || p), validation"


def panels(experiment: Experiment, records: Mapping[str, Sequence[Record]]) -> list[Panel]:
    """The plots of a run that have a value. records: stage -> the rows of its metrics.jsonl."""
    found = [_panel(title, names, records.get("prior", ())) for title, names in PRIOR.items()]
    of_vae = records.get("vae", ())
    # Models of 8-bit values are compared in bits/dim.
    binary = LIKELIHOODS[experiment.vae.likelihood].binary
    dimensions = None if binary else math.prod(experiment.data.shape)
    found += [_panel(title, names, of_vae, dimensions) for title, names in BOUNDS.items()]
    found += [_panel(title, names, of_vae) for title, names in LOSS.items()]
    parts = sorted({key for row in of_vae for key, value in row.items() if key.startswith(KL) and value})
    found.append(_panel(KL_TITLE, {key: key.removeprefix("valid/") for key in parts}, of_vae))
    return [panel for panel in found if panel.lines]


def _panel(
    title: str, names: Mapping[str, str], records: Sequence[Record], dimensions: int | None = None
) -> Panel:
    lines = {name: _line(records, key) for key, name in names.items() if any(key in row for row in records)}
    return Panel(title, lines, dashed=(SURROGATE,), dimensions=dimensions)


def _line(records: Sequence[Record], key: str) -> Line:
    points = [(row["images_seen"], row[key]) for row in records if key in row]
    return [x for x, _ in points], [y for _, y in points]
