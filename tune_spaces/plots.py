"""Plots of the finished trials of a sweep: by field, all fields at once, and loss against cost.

A loss is the sweep's metric, in nats per image: less is better.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from npdraw_dist.config.registry import KINDS
from tune_spaces.space import Value
from tune_spaces.trials import TrialResult

COLUMNS = 3
MAP = "viridis_r"  # the best is darkest
LOG_SPAN = 10.0  # positive numbers that span more than this factor get a logarithmic axis

Ticks = list[tuple[float, str]]


def varied(results: Sequence[TrialResult]) -> list[str]:
    """The settings that differ among the results."""
    keys = dict.fromkeys(key for result in results for key in result.settings)
    return [key for key in keys if len({str(result.settings.get(key)) for result in results}) > 1]


def positions(values: Sequence[Value]) -> tuple[list[float], Ticks | None]:
    """The positions of values on an axis, and its ticks; None for many numbers: each is its own position.

    Few distinct values, or any that are not numbers, are spread evenly in their order.
    """
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    numeric = len(numbers) == len(values)
    distinct: list[Value] = [*sorted(set(numbers))] if numeric else sorted(set(values), key=str)
    if numeric and len(distinct) > 6:
        return [float(v) for v in numbers], None
    index = {value: float(rank) for rank, value in enumerate(distinct)}
    return [index[v] for v in values], [(index[v], f"{v:g}" if numeric else str(v)) for v in distinct]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, loss): True if no other is as good in both and better in one."""
    return [
        not any(a <= cost and b <= loss and (a < cost or b < loss) for a, b in points)
        for cost, loss in points
    ]


def field_plots(results: Sequence[TrialResult], metric: str) -> Figure:
    """The metric against each setting that differs: a dot for each trial, a line through the medians."""
    keys = varied(results) or ["trial"]
    rows, columns = math.ceil(len(keys) / COLUMNS), min(len(keys), COLUMNS)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    losses = [result.numbers[metric] for result in results]
    for axis, key in zip(axes, keys, strict=False):
        xs, ticks = positions([result.settings.get(key, result.trial) for result in results])
        axis.scatter(xs, losses, s=24, alpha=0.8)
        if ticks is None:
            if min(xs) > 0 and max(xs) / min(xs) > LOG_SPAN:
                axis.set_xscale("log")
        else:
            at = [position for position, _ in ticks]
            axis.set_xticks(at, [text for _, text in ticks])
            groups = [[loss for x, loss in zip(xs, losses, strict=True) if x == position] for position in at]
            axis.plot(at, [statistics.median(group) for group in groups])
        axis.set_xlabel(key)
        axis.set_ylabel(f"{metric} (nats)")
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    return figure


def parallel_plot(results: Sequence[TrialResult], metric: str) -> Figure:
    """Parallel coordinates: an axis for each setting and one for the metric, a line for each trial."""
    keys = varied(results)
    figure = Figure(figsize=(2.0 + 1.7 * (len(keys) + 1), 5.0), layout="constrained")
    axis = figure.subplots()
    losses = [result.numbers[metric] for result in results]
    colours = ScalarMappable(Normalize(min(losses), max(losses)), MAP)
    shades = colours.to_rgba(np.array(losses))
    heights = [_heights(axis, at, [r.settings.get(key) for r in results]) for at, key in enumerate(keys)]
    heights.append(_heights(axis, len(keys), losses))
    for number in sorted(range(len(results)), key=lambda n: -losses[n]):  # the best on top
        ys = [column[number] for column in heights]
        axis.plot(range(len(ys)), ys, color=shades[number], linewidth=2, alpha=0.85)
    for at in range(len(heights)):
        axis.axvline(at, color="0.6", linewidth=0.8)
    axis.set_xticks(range(len(heights)), [*keys, metric])
    axis.set_yticks([])
    axis.set_xlim(-0.2, len(keys) + 0.6)
    figure.colorbar(colours, ax=axis, label=f"{metric} (nats)")
    return figure


def _heights(axis: Axes, at: int, values: Sequence[Value]) -> list[float]:
    """Heights in [0, 1] of values on the parallel axis `at`; writes its ticks."""
    xs, ticks = positions(values)
    low, high = min(xs), max(xs)
    span = high - low or 1.0
    for position, text in ticks or [(low, f"{low:.3g}"), (high, f"{high:.3g}")]:
        axis.text(at + 0.04, (position - low) / span, text, fontsize=8, va="center")
    return [(x - low) / span for x in xs]


def curve_plot(results: Sequence[TrialResult]) -> Figure:
    """Test and validation NLL against the number of training images: a line for each kind of model.

    Bars are standard errors over the test images.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for number, (kind, entry) in enumerate(KINDS.items()):
        of_kind = [result.numbers for result in results if result.settings.get("model.kind") == kind]
        points = sorted(of_kind, key=lambda numbers: numbers["train_images"])
        if not points:
            continue
        images, test, errors, valid = (
            [numbers[name] for numbers in points]
            for name in ("train_images", "test_nll", "test_nll_se", "valid_nll")
        )
        axis.errorbar(
            images, test, errors, color=f"C{number}", marker="o", capsize=3, label=f"{entry.title}, test"
        )
        axis.plot(images, valid, color=f"C{number}", linestyle=":", label=f"{entry.title}, validation")
    axis.set_xscale("log")
    axis.set_xlabel("training images")
    axis.set_ylabel("NLL (nats per image)")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def pareto_plot(results: Sequence[TrialResult], metric: str, costs: Sequence[str]) -> Figure:
    """The metric against each cost; the trials on the Pareto front are joined and named."""
    figure = Figure(figsize=(5.5 * len(costs), 4.4), layout="constrained")
    axes = figure.subplots(1, len(costs), squeeze=False).flatten()
    for axis, cost in zip(axes, costs, strict=True):
        points = [(result.numbers[cost], result.numbers[metric]) for result in results]
        axis.scatter(*zip(*points, strict=True), s=24, color="0.6")
        named = zip(points, results, pareto_front(points), strict=True)
        best = sorted((x, y, result.trial) for (x, y), result, on_front in named if on_front)
        xs, ys, _ = zip(*best, strict=True)
        axis.step(xs, ys, where="post", marker="o", label="Pareto front")
        for x, y, name in best:
            axis.annotate(name[:6], (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
        axis.set_xlabel(cost)
        axis.set_ylabel(f"{metric} (nats)")
        axis.legend()
    return figure
