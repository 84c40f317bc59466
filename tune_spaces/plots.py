"""Pictures of a sweep, of its finished trials: by field, all fields at once, and loss against cost.

N trials. A loss is the sweep's metric in nats per image, so less is better.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tune_spaces.records import Record

COLUMNS = 3
MAP = "viridis_r"  # the best is darkest
LOG_SPAN = 20.0  # positive numbers that span more than this factor get a logarithmic axis


def swept(records: Sequence[Record]) -> list[str]:
    """The settings that differ among the records."""
    keys = dict.fromkeys(key for record in records for key in record.settings)
    return [key for key in keys if len({str(record.settings.get(key)) for record in records}) > 1]


def places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]] | None]:
    """Where values lie on an axis, and its ticks: None where they are numbers that speak for themselves.

    Few distinct values, or any that are no numbers, lie at equal distances in their order.
    """
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    distinct = sorted(set(values)) if numeric else sorted(set(values), key=str)
    if numeric and len(distinct) > 6:
        return [float(v) for v in values], None
    index = {value: float(place) for place, value in enumerate(distinct)}
    return [index[v] for v in values], [(index[v], f"{v:g}" if numeric else str(v)) for v in distinct]


def field_plots(records: Sequence[Record], metric: str) -> Figure:
    """The metric against each setting that differs, a dot a trial, a line through the medians."""
    keys = swept(records) or ["trial"]
    rows = math.ceil(len(keys) / COLUMNS)
    wide = min(len(keys), COLUMNS)
    figure = Figure(figsize=(4.2 * wide, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, wide, squeeze=False).flatten()
    losses = [record.numbers[metric] for record in records]
    for axis, key in zip(axes, keys, strict=False):
        values = [record.settings.get(key, record.trial) for record in records]
        xs, ticks = places(values)
        axis.scatter(xs, losses, s=24, alpha=0.8)
        if ticks is None:
            if min(xs) > 0 and max(xs) / min(xs) > LOG_SPAN / 2:
                axis.set_xscale("log")
        else:
            axis.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
            axis.plot([place for place, _ in ticks], [_median(xs, losses, place) for place, _ in ticks])
        axis.set_xlabel(key)
        axis.set_ylabel(f"{metric} (nats)")
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    return figure


def _median(xs: Sequence[float], losses: Sequence[float], place: float) -> float:
    here = sorted(loss for x, loss in zip(xs, losses, strict=True) if x == place)
    middle = len(here) // 2
    return here[middle] if len(here) % 2 else (here[middle - 1] + here[middle]) / 2


def parallel_plot(records: Sequence[Record], metric: str) -> Figure:
    """Parallel coordinates: an axis a setting and one for the metric, a line a trial in its colour."""
    keys = swept(records)
    figure = Figure(figsize=(2.0 + 1.7 * (len(keys) + 1), 5.0), layout="constrained")
    axis = figure.subplots()
    losses = [record.numbers[metric] for record in records]
    colours = ScalarMappable(Normalize(min(losses), max(losses)), MAP)
    shades = colours.to_rgba(np.array(losses))
    heights = [_unit(axis, at, [r.settings.get(key) for r in records]) for at, key in enumerate(keys)]
    heights.append(_unit(axis, len(keys), losses))
    for number in sorted(range(len(records)), key=lambda n: -losses[n]):  # the best on top
        ys = [column[number] for column in heights]
        axis.plot(range(len(ys)), ys, color=shades[number], linewidth=2, alpha=0.85)
    for at in range(len(heights)):
        axis.axvline(at, color="0.6", linewidth=0.8)
    axis.set_xticks(range(len(heights)), [*keys, metric])
    axis.set_yticks([])
    axis.set_xlim(-0.2, len(keys) + 0.6)
    figure.colorbar(colours, ax=axis, label=f"{metric} (nats)")
    return figure


def _unit(axis: Axes, at: int, values: Sequence[Any]) -> list[float]:
    """Heights in [0, 1] of values on the parallel axis `at`, whose ticks it writes."""
    xs, ticks = places(values)
    low, high = min(xs), max(xs)
    span = high - low or 1.0
    for place, text in ticks or [(low, f"{low:.3g}"), (high, f"{high:.3g}")]:
        axis.text(at + 0.04, (place - low) / span, text, fontsize=8, va="center")
    return [(x - low) / span for x in xs]


def pareto_plot(records: Sequence[Record], metric: str, fronts: Mapping[str, Sequence[bool]]) -> Figure:
    """The metric against each cost; the trials that none beats in both are joined and named."""
    figure = Figure(figsize=(5.5 * len(fronts), 4.4), layout="constrained")
    axes = figure.subplots(1, len(fronts), squeeze=False).flatten()
    for axis, (cost, front) in zip(axes, fronts.items(), strict=True):
        points = [(record.numbers[cost], record.numbers[metric]) for record in records]
        axis.scatter([x for x, _ in points], [y for _, y in points], s=24, color="0.6")
        best = sorted(
            (x, y, record.trial) for (x, y), record, on in zip(points, records, front, strict=True) if on
        )
        axis.step(
            [x for x, _, _ in best], [y for _, y, _ in best], where="post", marker="o", label="Pareto front"
        )
        for x, y, name in best:
            axis.annotate(name[:6], (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
        axis.set_xlabel(cost)
        axis.set_ylabel(f"{metric} (nats)")
        axis.legend()
    return figure
