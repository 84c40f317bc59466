"""Plots the finished trials of a sweep and the models of a comparison.

A loss is the metric of the sweep, in nats per image; less is better.
"""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from npdraw_dist.config.registry import KINDS, in_order, title_of
from npdraw_dist.measure.tables import percent
from tune_spaces.trials import TrialResult

COLUMNS = 3
MOST_NAMES = 6  # more distinct numbers than this are positions on an axis of numbers
LOG_SPAN = 10.0  # positive numbers that span more than this factor get a logarithmic axis
VERDICTS = {"better": "tab:green", "worse": "tab:red", "open": "0.5"}  # verdict on a difference -> colour
APART = 1.06  # factor between neighbouring kinds on the axis of fractions, so that no point covers another


def varied(results: Sequence[TrialResult]) -> list[str]:
    """The settings that differ among the results."""
    keys = dict.fromkeys(key for result in results for key in result.settings)
    return [key for key in keys if len({str(result.settings.get(key)) for result in results}) > 1]


def field_plots(results: Sequence[TrialResult], metric: str) -> Figure:
    """The metric against each setting that differs, with a dot for each trial and a line of medians.

    Values are spread evenly, but more than MOST_NAMES distinct numbers have an axis of numbers and no line.
    """
    keys = varied(results) or ["trial"]
    rows, columns = math.ceil(len(keys) / COLUMNS), min(len(keys), COLUMNS)
    figure, axes = _panels(rows, columns, (4.2, 3.4))
    losses = [result.numbers[metric] for result in results]
    for axis, key in zip(axes, keys, strict=False):
        values = [result.settings.get(key, result.trial) for result in results]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        numeric = len(numbers) == len(values)
        if numeric and len(set(numbers)) > MOST_NAMES:
            axis.scatter(numbers, losses, s=24, alpha=0.8)
            if min(numbers) > 0 and max(numbers) / min(numbers) > LOG_SPAN:
                axis.set_xscale("log")
        else:  # matplotlib spreads names evenly, in the order in which the line has them
            names = [f"{v:g}" for v in numbers] if numeric else [str(v) for v in values]
            order = sorted(set(names), key=float if numeric else str)
            groups = [[loss for x, loss in zip(names, losses, strict=True) if x == name] for name in order]
            axis.plot(order, [statistics.median(group) for group in groups])
            axis.scatter(names, losses, s=24, alpha=0.8)
        axis.set(xlabel=key, ylabel=f"{metric} (nats)")
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    return figure


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure and its panels. size: width and height of a panel in inches."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flatten())


def curve_plot(results: Sequence[TrialResult]) -> Figure:
    """Test and validation NLL against the number of training images, with lines for each kind of model.

    Error bars are standard errors over the test images.
    """
    figure, (axis,) = _panels(1, 1, (6.4, 4.4))
    for number, kind in enumerate([*KINDS, None]):  # None: model.kind does not vary
        of_kind = [result.numbers for result in results if result.settings.get("model.kind") == kind]
        if not of_kind:
            continue
        points = sorted(
            (found["train_images"], found["test_nll"], found.get("test_nll_se", 0.0), found["valid_nll"])
            for found in of_kind  # a single test image has no standard error
        )
        images, test, errors, valid = np.transpose(points)
        title = "" if kind is None else f"{KINDS[kind].title}, "
        axis.errorbar(images, test, errors, color=f"C{number}", marker="o", capsize=3, label=f"{title}test")
        axis.plot(images, valid, color=f"C{number}", linestyle=":", label=f"{title}validation")
    axis.set(xscale="log", xlabel="training images", ylabel="NLL (nats per image)")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def pareto_plot(results: Sequence[TrialResult], metric: str, costs: Sequence[str]) -> Figure:
    """The metric against each cost; a line joins the trials on the Pareto front, and labels name them."""
    figure, axes = _panels(1, len(costs), (5.5, 4.4))
    for axis, cost in zip(axes, costs, strict=True):
        points = sorted((result.numbers[cost], result.numbers[metric], result.trial) for result in results)
        axis.scatter([x for x, *_ in points], [y for _, y, _ in points], s=24, color="0.6")
        front: list[tuple[float, float, str]] = []  # each point is better than all that cost less
        for point in points:
            if not front or point[1] < front[-1][1]:
                front.append(point)
        xs, ys, _ = zip(*front, strict=True)
        axis.step(xs, ys, where="post", marker="o", label="Pareto front")
        for x, y, name in front:
            axis.annotate(name[:6], (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
        axis.set(xlabel=cost, ylabel=f"{metric} (nats)")
        axis.legend()
    return figure


def by_fraction(runs: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Figure:
    """Means and standard deviations over each kind's seeds, with a panel for each number that all runs have.

    runs: rows with kind, fraction and numbers. labels: label of an axis -> name of its number.
    """
    labels = {label: name for label, name in labels.items() if all(run[name] is not None for run in runs)}
    figure, axes = _panels(1, len(labels), (5.4, 4.2))
    fractions = sorted({run["fraction"] for run in runs})
    kinds = in_order(run["kind"] for run in runs)
    for axis, (label, name) in zip(axes, labels.items(), strict=True):
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
    # One legend below all panels, since inside a panel it would cover a line.
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3 * len(labels), fontsize=8)
    return figure


def intervals(found: Mapping[tuple[float, str], tuple[float, float, str]]) -> Figure:
    """The paired differences in NLL. found: (fraction, kind) -> (mean, half of the interval, verdict)."""
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
