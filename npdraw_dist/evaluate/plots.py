"""Plots of models against each other: NLL by fraction, and paired differences, with error bars."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from npdraw_dist.config.registry import in_order, title_of

VERDICTS = {"better": "tab:green", "worse": "tab:red", "open": "0.5"}  # colour of a difference
APART = 1.06  # factor between two kinds on the axis of fractions, so that no point covers another


def percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def by_fraction(runs: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Figure:
    """A panel for each number that all runs have: each kind's mean over its seeds, and their deviation.

    runs: each with kind and fraction. labels: of an axis -> name of its number.
    """
    labels = {label: name for label, name in labels.items() if all(run[name] is not None for run in runs)}
    figure = Figure(figsize=(5.4 * max(len(labels), 1), 4.2), layout="constrained")
    fractions = sorted({run["fraction"] for run in runs})
    kinds = in_order(run["kind"] for run in runs)
    for column, (label, name) in enumerate(labels.items(), start=1):
        axis = figure.add_subplot(1, len(labels), column)
        for number, kind in enumerate(kinds):
            groups = {
                x: [r[name] for r in runs if (r["kind"], r["fraction"]) == (kind, x)] for x in fractions
            }
            groups = {x: values for x, values in groups.items() if values}
            xs = [x * APART ** (number - (len(kinds) - 1) / 2) for x in groups]
            means = [float(np.mean(values)) for values in groups.values()]
            bars = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in groups.values()]
            axis.errorbar(xs, means, bars, marker="o", capsize=3, label=title_of(kind))
        axis.set_xscale("log")
        axis.set_xticks(fractions, [percent(x) for x in fractions], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("fraction of the training images (bars: deviation of seeds)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if labels:  # one legend below all panels: inside a panel it would cover a line
        lines, names = figure.axes[0].get_legend_handles_labels()
        columns = 3 * len(labels)
        figure.legend(lines, names, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def intervals(found: Mapping[tuple[float, str], tuple[float, float, str]]) -> Figure:
    """Paired differences in NLL. found: (fraction, kind) -> mean, half of the interval and verdict."""
    figure = Figure(figsize=(7.0, 1.2 + 0.3 * len(found)), layout="constrained")
    axis, labels = figure.subplots(), []
    for row, ((fraction, kind), (mean, half, verdict)) in enumerate(reversed(list(found.items()))):
        axis.errorbar(mean, row, xerr=half, fmt="o", capsize=3, color=VERDICTS[verdict])
        labels.append(f"{title_of(kind)}, {percent(fraction)}")
    axis.set_yticks(range(len(found)), labels)
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.axvline(0, color="0.5", linewidth=1)
    axis.set_xlabel("NLL of NP-DRAW minus that of the other kind\n(nats; bars: 95% intervals)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def picture(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
