"""Training curves as a picture: which metrics of a run, under what names, and how they are drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.config.schema import Experiment

if TYPE_CHECKING:  # else imported at the end of a run, not at its start
    from matplotlib.axes import Axes

Row = Mapping[str, Any]  # a row of a stage's metrics.jsonl
Line = tuple[Sequence[float], Sequence[float]]  # images seen, values
START = 0.2  # share of a training whose points may be off the axis
LEAST = 3  # points after it; with fewer all points set the limits
SURROGATE = "training, relaxed draws (no bound)"
# Title -> its metrics and their names. Relaxed draws are only in train/surrogate, hard ones in train/elbo.
PRIOR = {"prior: -log p(z) of the parses": {"train/nll": "training", "valid/nll": "validation"}}
BOUNDS = {
    "ELBO": {"train/surrogate": SURROGATE, "train/elbo": "training", "valid/elbo": "validation"},
    "log p(x|z), validation": {"valid/reconstruction": "validation"},
}
LOSS = {"loss, with all its weights": {"train/loss": "training"}}
KL, KL_TITLE = "valid/kl", "parts of KL(q || p), validation"


@dataclass(frozen=True)
class Panel:
    """A plot. lines: name -> (images seen, values in `unit`). dashed: the lines that are no bound.

    dimensions: values of an image, for an axis in bits/dim on the right; None for no such axis.
    """

    title: str
    lines: Mapping[str, Line]
    unit: str = "nats"
    dashed: tuple[str, ...] = ()
    dimensions: int | None = None


def panels(experiment: Experiment, records: Mapping[str, Sequence[Row]]) -> list[Panel]:
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
    title: str, names: Mapping[str, str], records: Sequence[Row], dimensions: int | None = None
) -> Panel:
    lines = {name: _line(records, key) for key, name in names.items() if any(key in row for row in records)}
    return Panel(title, lines, dashed=(SURROGATE,), dimensions=dimensions)


def _line(records: Sequence[Row], key: str) -> Line:
    points = [(row["images_seen"], row[key]) for row in records if key in row]
    return [x for x, _ in points], [y for _, y in points]


def save_curves(path: Path, panels: Sequence[Panel]) -> None:
    """A PNG of all panels, two in a row. Early points that would squash the rest are off the axis."""
    from matplotlib.figure import Figure

    rows = max(math.ceil(len(panels) / 2), 1)
    figure = Figure(figsize=(10, 2.9 * rows), layout="constrained", dpi=100)
    for index, panel in enumerate(panels):
        _draw(figure.add_subplot(rows, 2, index + 1), panel)
    figure.savefig(path, format="png")


def _draw(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    for name, (images_seen, values) in panel.lines.items():
        axes.plot(
            images_seen,
            values,
            marker="." if len(values) < 50 else None,
            linewidth=1.2,
            linestyle="--" if name in panel.dashed else "-",
            label=name,
        )
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("images seen", fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(panel.dimensions is not None)
    if len(panel.lines) > 1:
        axes.legend(fontsize=7, frameon=False)
    limits = axis_limits(list(panel.lines.values()))
    if limits is not None:
        axes.set_ylim(limits.low, limits.high)
        if limits.note:
            axes.set_title(limits.note, fontsize=7, loc="right", color="0.4")
    if panel.dimensions is not None:
        nats = panel.dimensions * math.log(2)  # in one bit a dimension
        scales = (lambda y: np.asarray(y) / -nats, lambda y: np.asarray(y) * -nats)
        right = axes.secondary_yaxis("right", functions=scales)
        right.set_ylabel("bits/dim", fontsize=8)
        right.tick_params(labelsize=8)


@dataclass(frozen=True)
class Limits:
    """The range of an axis. note: what is off it; "" if nothing is."""

    low: float
    high: float
    note: str


def axis_limits(lines: Sequence[Line]) -> Limits | None:
    """Limits that hold all finite points but early ones that would squash the rest; None without a point."""
    x, y = (np.concatenate([np.asarray(line[axis], float) for line in lines]) for axis in (0, 1))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) == 0:
        return None
    late = y[x > START * x.max()]
    if len(late) < LEAST:
        late = y
    low, high = late.min(), late.max()
    on_axis = (y >= low - (high - low)) & (y <= high + (high - low))  # half of the axis may be of the start
    note, off = "", y[~on_axis]
    if len(off):
        furthest = off[np.abs(off - low).argmax()]
        shown = f"{furthest:,.0f}" if abs(furthest) >= 1000 else f"{furthest:.4g}"
        note = f"{len(off)} early points off the axis, up to {shown}"
    return Limits(*_padded(y[on_axis]), note)


def _padded(values: NDArray[np.float64]) -> tuple[float, float]:
    """The range of the values, and a twentieth of it on both sides."""
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or max(abs(high), 1e-3) * 0.05
    return low - pad, high + pad
