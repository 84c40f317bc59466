"""Plots training curves, and declares which metrics the plots show under which names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.config.schema import Experiment

if TYPE_CHECKING:  # a run imports matplotlib only when it plots, at its end
    from matplotlib.axes import Axes

Row = Mapping[str, Any]  # a row of a stage's metrics.jsonl
Line = tuple[Sequence[float], Sequence[float]]  # images seen, values
START = 0.2  # share of a run, from its start, whose points may be outside the axis limits
LEAST = 3  # minimum number of points after START; if there are fewer, all points set the limits
SURROGATE = "training, relaxed draws (no bound)"  # the label of the dashed line
# Title -> metric -> label. Steps with relaxed draws report train/surrogate, those with hard draws train/elbo.
PRIOR = {"prior: -log p(z) of the parses": {"train/nll": "training", "valid/nll": "validation"}}
BOUNDS = {
    "ELBO": {"train/surrogate": SURROGATE, "train/elbo": "training", "valid/elbo": "validation"},
    "log p(x|z), validation": {"valid/reconstruction": "validation"},
}
LOSS = {"loss, with all its weights": {"train/loss": "training"}}
KL, KL_TITLE = "valid/kl", "parts of KL(q || p), validation"


@dataclass(frozen=True)
class Panel:
    """A plot. lines: label -> (images seen, values in nats).

    dimensions: the number of values in an image, for a second axis in bits/dim; None means no such axis.
    """

    title: str
    lines: Mapping[str, Line]
    dimensions: int | None = None


def panels(experiment: Experiment, records: Mapping[str, Sequence[Row]]) -> list[Panel]:
    """The plots of a run, without empty ones. records: stage -> the rows of the stage's metrics.jsonl."""
    prior, vae = records.get("prior", ()), records.get("vae", ())
    # Likelihoods of 8-bit values are usually stated in bits/dim, those of binary values in nats.
    binary = LIKELIHOODS[experiment.vae.likelihood].binary
    dimensions = None if binary else math.prod(experiment.data.shape)
    parts = sorted({key for row in vae for key, value in row.items() if key.startswith(KL) and value})
    kl = {KL_TITLE: {key: key.removeprefix("valid/") for key in parts}}
    found = []
    for plots, rows, values in ((PRIOR, prior, None), (BOUNDS, vae, dimensions), (LOSS | kl, vae, None)):
        for title, names in plots.items():
            lines = {name: _line(rows, key) for key, name in names.items()}
            found.append(Panel(title, {name: line for name, line in lines.items() if line[0]}, values))
    return [panel for panel in found if panel.lines]


def _line(rows: Sequence[Row], key: str) -> Line:
    known = [row for row in rows if key in row]
    return [row["images_seen"] for row in known], [row[key] for row in known]


def save_curves(path: Path, panels: Sequence[Panel]) -> None:
    """Saves all panels as a PNG, two in a row. `axis_limits` may leave early points outside the axes."""
    from matplotlib.figure import Figure

    rows = max(math.ceil(len(panels) / 2), 1)
    height = 2.9 * rows
    figure = Figure(figsize=(11, height), dpi=100)
    # The margins are fixed, since fitting them to the labels ("constrained") would draw everything twice.
    inner = {"bottom": 0.45 / height, "top": 1 - 0.3 / height, "hspace": 0.75 / 2.15}
    grid = figure.add_gridspec(rows, 2, left=0.07, right=0.93, wspace=0.32, **inner)
    for index, panel in enumerate(panels):
        _draw(figure.add_subplot(grid[index]), panel)
    figure.savefig(path, format="png")


def _draw(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    for name, (images_seen, values) in panel.lines.items():
        marker, style = "." if len(values) < 50 else None, "--" if name == SURROGATE else "-"
        axes.plot(images_seen, values, marker=marker, linewidth=1.2, linestyle=style, label=name)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("images seen", fontsize=8)
    axes.set_ylabel("nats", fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(panel.dimensions is not None)
    if len(panel.lines) > 1:
        axes.legend(fontsize=7, frameon=False)
    low, high, note = axis_limits(list(panel.lines.values()))
    axes.set_ylim(low, high)
    axes.set_title(note, fontsize=7, loc="right", color="0.4")
    if panel.dimensions is not None:
        nats = panel.dimensions * math.log(2)  # nats per image that equal 1 bit/dim
        scales = (lambda y: np.asarray(y) / -nats, lambda y: np.asarray(y) * -nats)
        right = axes.secondary_yaxis("right", functions=scales)
        right.set_ylabel("bits/dim", fontsize=8)
        right.tick_params(labelsize=8)


def axis_limits(lines: Sequence[Line]) -> tuple[float | None, float | None, str]:
    """The lower and upper limit of the y axis, and a note on points outside them, "" if there are none.

    The limits include all finite points, except early ones that would squash the others, and a margin of a
    twentieth. If no point is finite, both limits are None.
    """
    x, y = (np.concatenate([np.asarray(line[axis], float) for line in lines]) for axis in (0, 1))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) == 0:
        return None, None, ""
    late = y[x > START * x.max()]
    if len(late) < LEAST:
        late = y
    low, high = late.min(), late.max()
    # Early points may extend the axis at each end by as much as the late points span.
    on_axis = (y >= low - (high - low)) & (y <= high + (high - low))
    note, off = "", y[~on_axis]
    if len(off):
        furthest = off[np.abs(off - low).argmax()]
        shown = f"{furthest:,.0f}" if abs(furthest) >= 1000 else f"{furthest:.4g}"
        note = f"{len(off)} early points off the axis, up to {shown}"
    low, high = float(y[on_axis].min()), float(y[on_axis].max())
    pad = 0.05 * (high - low) or max(abs(high), 1e-3) * 0.05
    return low - pad, high + pad, note
