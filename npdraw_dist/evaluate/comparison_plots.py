"""Plots of a comparison of kinds, with error bars: NLL by fraction and by k, paired differences."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from npdraw_dist.config.registry import KINDS
from npdraw_dist.evaluate.claims import NLL, Claim, image_values, of_kind
from npdraw_dist.evaluate.measured import Measured

APART = 1.06  # factor between two kinds on the axis of fractions, so that no point covers another


def colour(kind: str) -> str:
    return f"C{list(KINDS).index(kind)}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def by_fraction(measured: Sequence[Measured], skipped: int) -> Figure:
    """The mean NLL of each kind over its seeds, with the deviation of seeds as bars; beside it, distances."""
    names = ["nll"] + ["frechet_distance"] * all("frechet_distance" in m.numbers for m in measured)
    figure = Figure(figsize=(5.4 * len(names), 4.2), layout="constrained")
    fractions = sorted({m.entry.fraction for m in measured})
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        kinds = _kinds(measured)
        for number, kind in enumerate(kinds):
            groups = [list(of_kind(measured, kind, fraction).values()) for fraction in fractions]
            values = [
                [
                    float(image_values(m, "nll", skipped).mean()) if name == "nll" else m.numbers[name]
                    for m in g
                ]
                for g in groups
            ]
            some = [(x, v) for x, v in zip(fractions, values, strict=True) if v]
            xs = [x * APART ** (number - (len(kinds) - 1) / 2) for x, _ in some]
            means = [float(np.mean(v)) for _, v in some]
            bars = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for _, v in some]
            title = KINDS[kind].title
            axis.errorbar(xs, means, bars, marker="o", capsize=3, color=colour(kind), label=title)
        axis.set_xscale("log")
        axis.set_xticks(fractions, [percent(x) for x in fractions], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("fraction of the training images (bars: deviation of seeds)")
        axis.set_ylabel("test NLL (nats an image)" if name == "nll" else "Frechet distance")
    return _finished(figure)


def by_k(measured: Sequence[Measured]) -> Figure:
    """The bound against the number of draws, a panel for each fraction."""
    fractions = sorted({m.entry.fraction for m in measured}, reverse=True)
    figure = Figure(figsize=(5.0 * len(fractions), 4.2), layout="constrained")
    for axis, fraction in zip(figure.subplots(1, len(fractions), squeeze=False)[0], fractions, strict=True):
        for run in (m for m in measured if m.curve and m.entry.fraction == fraction):
            ks = sorted(run.curve)
            values = [run.curve[k] for k in ks]
            axis.plot(ks, values, marker=".", color=colour(run.entry.kind), label=run.entry.title)
        axis.set_xscale("log")
        axis.set_title(f"{percent(fraction)} of the images")
        axis.set_xlabel("k, draws of z")
        axis.set_ylabel("NLL of some images (nats)")
    return _finished(figure)


def differences(claims: Sequence[Claim]) -> Figure:
    """The paired differences in NLL with two standard errors; left of 0 NP-DRAW is better."""
    shown = [claim for claim in claims if claim.measure == NLL]
    figure = Figure(figsize=(7.0, 1.2 + 0.3 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for row, claim in enumerate(reversed(shown)):
        found = claim.difference
        axis.errorbar(found.mean, row, xerr=2 * found.error, fmt="o", capsize=3, color=colour(claim.kind))
    labels = [f"{KINDS[c.kind].title}, {percent(c.fraction)}" for c in reversed(shown)]
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


def _kinds(measured: Sequence[Measured]) -> list[str]:
    return [kind for kind in KINDS if any(m.entry.kind == kind for m in measured)]


def _finished(figure: Figure) -> Figure:
    """With a grid, and one legend of all panels below them: inside a panel it would cover a line."""
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
