"""Plots of models against each other: NLL by fraction and by k, and paired differences, with error bars."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from npdraw_dist.config.registry import KINDS
from npdraw_dist.evaluate.differences import INTERVAL, Comparison

APART = 1.06  # factor between two kinds on the axis of fractions, so that no point covers another
Point = tuple[str, float, Mapping[str, float]]  # a run: its kind, its fraction, numbers by the axis's label


def colour(kind: str) -> str:
    return f"C{list(KINDS).index(kind)}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def by_fraction(points: Sequence[Point]) -> Figure:
    """A panel for each number that all runs have: each kind's mean over its seeds, and their deviation."""
    labels = [label for label in points[0][2] if all(label in numbers for _, _, numbers in points)]
    figure = Figure(figsize=(5.4 * len(labels), 4.2), layout="constrained")
    fractions = sorted({fraction for _, fraction, _ in points})
    kinds = [kind for kind in KINDS if any(kind == own for own, _, _ in points)]
    for axis, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for number, kind in enumerate(kinds):
            groups = {x: [n[label] for own, at, n in points if (own, at) == (kind, x)] for x in fractions}
            groups = {x: values for x, values in groups.items() if values}
            xs = [x * APART ** (number - (len(kinds) - 1) / 2) for x in groups]
            means = [float(np.mean(values)) for values in groups.values()]
            bars = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in groups.values()]
            title = KINDS[kind].title
            axis.errorbar(xs, means, bars, marker="o", capsize=3, color=colour(kind), label=title)
        axis.set_xscale("log")
        axis.set_xticks(fractions, [percent(x) for x in fractions], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("fraction of the training images (bars: deviation of seeds)")
        axis.set_ylabel(label)
    return _finished(figure)


def by_k(comparison: Comparison) -> Figure:
    """The bound against the number of draws, a panel for each fraction."""
    fractions = comparison.fractions
    figure = Figure(figsize=(5.0 * len(fractions), 4.2), layout="constrained")
    for axis, fraction in zip(figure.subplots(1, len(fractions), squeeze=False)[0], fractions, strict=True):
        for run in comparison.leading(fraction):
            ks = sorted(run.curve)
            values = [run.curve[k] for k in ks]
            axis.plot(ks, values, marker=".", color=colour(run.entry.kind), label=run.entry.title)
        axis.set_xscale("log")
        axis.set_title(f"{percent(fraction)} of the images")
        axis.set_xlabel("k, draws of z")
        axis.set_ylabel("NLL of some images (nats)")
    return _finished(figure)


def differences(comparison: Comparison) -> Figure:
    """The paired differences in NLL with their intervals; left of 0 NP-DRAW is better."""
    found = comparison.differences.items()
    shown = [(fraction, kind, d) for (fraction, name, kind), d in found if name == "nll_iwae"]
    figure = Figure(figsize=(7.0, 1.2 + 0.3 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for row, (_, kind, d) in enumerate(reversed(shown)):
        axis.errorbar(d.mean, row, xerr=INTERVAL * d.error, fmt="o", capsize=3, color=colour(kind))
    labels = [f"{KINDS[kind].title}, {percent(fraction)}" for fraction, kind, _ in reversed(shown)]
    axis.set_yticks(range(len(shown)), labels)
    axis.set_ylim(-0.6, len(shown) - 0.4)
    axis.axvline(0, color="0.5", linewidth=1)
    axis.set_xlabel("NLL of NP-DRAW minus that of the other kind\n(nats; bars: two standard errors)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def picture(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _finished(figure: Figure) -> Figure:
    """Adds a grid, and one legend of all panels below them: inside a panel it would cover a line."""
    lines: dict[str, Any] = {}
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    if lines:
        columns = 3 * len(figure.axes)
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    return figure
