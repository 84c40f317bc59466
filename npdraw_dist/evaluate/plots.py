"""Plots of models against each other: NLL by fraction and by k, and paired differences, with error bars."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from npdraw_dist.config.registry import KINDS

APART = 1.06  # factor between two kinds on the axis of fractions, so that no point covers another


def colour(kind: str) -> str:
    return f"C{list(KINDS).index(kind)}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def by_fraction(runs: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Figure:
    """A panel for each number that all runs have: each kind's mean over its seeds, and their deviation.

    runs: each with kind and fraction. labels: of an axis -> name of its number.
    """
    labels = {label: name for label, name in labels.items() if all(run[name] is not None for run in runs)}
    figure, axes = _panels(len(labels), 5.4)
    fractions = sorted({run["fraction"] for run in runs})
    kinds = [kind for kind in KINDS if any(kind == run["kind"] for run in runs)]
    for axis, (label, name) in zip(axes, labels.items(), strict=True):
        for number, kind in enumerate(kinds):
            groups = {
                x: [r[name] for r in runs if (r["kind"], r["fraction"]) == (kind, x)] for x in fractions
            }
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


def by_k(curves: Mapping[float, Mapping[str, Mapping[int, float]]]) -> Figure:
    """NLL against the number of draws, a panel for each fraction. curves: fraction -> kind -> k -> NLL."""
    figure, axes = _panels(len(curves), 5.0)
    for axis, (fraction, kinds) in zip(axes, curves.items(), strict=True):
        for kind, curve in kinds.items():
            ks, values = zip(*sorted(curve.items()), strict=True)
            axis.plot(ks, values, marker=".", color=colour(kind), label=KINDS[kind].title)
        axis.set_xscale("log")
        axis.set_title(f"{percent(fraction)} of the images")
        axis.set_xlabel("k, draws of z")
        axis.set_ylabel("NLL of some images (nats)")
    return _finished(figure)


def intervals(found: Mapping[tuple[float, str], tuple[float, float]]) -> Figure:
    """Paired differences in NLL. found: (fraction, kind) -> mean and half of the interval."""
    figure = Figure(figsize=(7.0, 1.2 + 0.3 * len(found)), layout="constrained")
    axis, labels = figure.subplots(), []
    for row, ((fraction, kind), (mean, half)) in enumerate(reversed(found.items())):
        axis.errorbar(mean, row, xerr=half, fmt="o", capsize=3, color=colour(kind))
        labels.append(f"{KINDS[kind].title}, {percent(fraction)}")
    axis.set_yticks(range(len(found)), labels)
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.axvline(0, color="0.5", linewidth=1)
    axis.set_xlabel("NLL of NP-DRAW minus that of the other kind\n(nats; bars: two standard errors)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def picture(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _panels(count: int, width: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * max(count, 1), 4.2), layout="constrained")
    return figure, [figure.add_subplot(1, count, number + 1) for number in range(count)]


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
