"""Writes the report of a comparison, NP-DRAW against each other kind on the same images and seeds.

The report uses only the stored numbers of the runs, so it can be written again without new measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from itertools import product
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from npdraw_dist.config.registry import in_order, title_of
from npdraw_dist.core.pages import rows_png
from npdraw_dist.evaluate.work import id_hash
from npdraw_dist.measure.bounds import bits_per_dim, standard_error
from npdraw_dist.measure.metrics import METRICS, TESTED, group
from npdraw_dist.measure.paired import LEVEL, Difference, holm, paired
from npdraw_dist.measure.tables import markdown_table, parquet, percent
from npdraw_dist.system.storage import write_files
from tune_spaces.measured import Measured
from tune_spaces.plots import by_fraction, intervals, picture

OURS = "npdraw"
OF_IMAGES = ("nll_iwae", "elbo")
PARTS = {"kl_whether", "kl_what", "kl_where"}  # terms of the ELBO for each step's whether, what and where
MARKS = {"better": "🟩", "worse": "🟥", "open": "⬜"}
CLOSE = 0.1  # the report lists the kinds whose seeds miss core_seconds by a larger share
Row = Mapping[str, Any]


def served(ids: Sequence[str], count: int) -> NDArray[np.bool_]:
    """True for the `count` images that `evaluate --images` takes, since they may have served for choices."""
    return np.isin(ids, nsmallest(count, ids, key=id_hash))


@dataclass(frozen=True)
class ReportData:
    """The runs of one or more sweeps, and the other facts of the report.

    search: fraction -> kind -> validation NLL of each trial, best first. references: `floor` and `ceiling` ->
    distance -> value. given: fraction -> (planned seeds of each kind, core-seconds of each training). served:
    number of test images that earlier choices used; differences leave them out.
    """

    measured: Sequence[Measured]
    search: Mapping[float, Mapping[str, Sequence[float]]]
    references: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]
    given: Mapping[float, tuple[int, float]]
    served: int = 0

    @property
    def fractions(self) -> list[float]:
        """The fractions of the training images, the largest first."""
        return sorted({run.entry.fraction for run in self.measured}, reverse=True)

    @property
    def kinds(self) -> list[str]:
        return in_order(run.entry.kind for run in self.measured)

    def leading(self, fraction: float) -> list[Measured]:
        """One run of each kind at this fraction; the report shows its curve and samples."""
        return [run for run in self.measured if run.entry.fraction == fraction and run.entry.leading]

    def runs(self, fraction: float, kind: str, role: str = "seed") -> list[Measured]:
        wanted = (fraction, kind, role)
        return [r for r in self.measured if (r.entry.fraction, r.entry.kind, r.entry.role) == wanted]

    def row(self, run: Measured) -> Row:
        """The row of a run in report.parquet.

        nll: mean over all images. nll_served: mean over the images used for choices. nll_others, elbo_others,
        bits_per_dim: means over the other images; binary data have no bits_per_dim. parts_share: the KL of
        whether, what and where as a share of the negative ELBO; None for a kind without parts.
        """
        before, own, nll = served(run.ids, self.served), vars(run.entry), run.nll_iwae
        groups = {"nll": nll, "nll_served": nll[before], "nll_others": nll[~before]}
        means = {name: float(group.mean()) if len(group) else None for name, group in groups.items()}
        others, dimensions = means["nll_others"], run.numbers.get("dimensions")
        elbo, numbers = float(run.elbo.mean()), run.numbers
        parts = sum(numbers[name] for name in PARTS) if numbers.keys() >= PARTS else None
        bits = None if others is None or dimensions is None else bits_per_dim(others, int(dimensions))
        return {
            "run": run.entry.folder,
            **{name: own[name] for name in ("kind", "fraction", "seed", "role")},
            **{name: run.entry.facts.get(name) for name in ("still_improving", "failed")},
            "n": len(run.ids),
            **means,
            "bits_per_dim": bits,
            "elbo": elbo,
            "elbo_others": float(run.elbo[~before].mean()) if others is not None else None,
            **{name: run.numbers.get(name) for name in group("term")},
            "parts_share": None if parts is None else -parts / elbo,
            **{name: run.numbers.get(name) for name in (*group("distance"), *group("edit"))},
            **{name: run.numbers.get(name) for name in ("valid_nll", *group("cost"))},
        }

    def values(self, run: Measured, name: str) -> dict[str, float]:
        """Image id -> number `name`, without images used for choices; "" -> number of the whole run."""
        if name not in OF_IMAGES:
            return {"": run.numbers[name]} if name in run.numbers else {}
        kept = np.flatnonzero(~served(run.ids, self.served))
        return {run.ids[i]: getattr(run, name)[i] for i in kept}

    @cached_property
    def differences(self) -> dict[tuple[float, str, str], Difference]:
        """(fraction, metric, kind) -> the metric of NP-DRAW minus that of `kind`, over common seeds.

        Larger fractions come first. Raises UserError if runs with the same seed have different test images.
        """
        others = [kind for kind in self.kinds if kind != OURS]
        found: dict[tuple[float, str, str], Difference] = {}
        for fraction, name, kind in product(self.fractions, TESTED, others):
            ours, theirs = (
                {run.entry.seed: self.values(run, name) for run in self.runs(fraction, each)}
                for each in (OURS, kind)
            )
            pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
            if pairs and all(values for pair in pairs for values in pair):
                found[fraction, name, kind] = paired(pairs)
        return found

    @cached_property
    def corrected(self) -> dict[tuple[float, str, str], float]:
        """The p-value of each difference, corrected for the number of differences; NaN with one seed."""
        return holm({key: difference.p_value for key, difference in self.differences.items()})

    def verdict(self, key: tuple[float, str, str]) -> str:
        """`better` or `worse` if the difference of NP-DRAW is significant, else `open`."""
        if not self.corrected[key] <= LEVEL:
            return "open"
        more = self.differences[key].mean > 0
        return "better" if more == (METRICS[key[1]].better == "more") else "worse"


def write_report(data: ReportData, out: str) -> list[str]:
    """Writes report.md, Parquet tables, plots and samples to the folder or URI `out`; returns their paths.

    Raises UserError if runs were scored on different images, or if the folder cannot be written.
    """
    found = data.differences
    rows = [data.row(run) for run in data.measured]
    seeds = [row for row in rows if row["role"] == "seed"]
    labels = {"test NLL (nats an image)": "nll_others", "Frechet distance": "frechet_distance"}
    bars = {k[::2]: (d.mean, d.half, data.verdict(k)) for k, d in found.items() if k[1] == "nll_iwae"}
    paired_rows = [
        {
            **dict(zip(("fraction", "measure", "kind"), key, strict=True)),
            **vars(difference),
            **{name: getattr(difference, name) for name in ("degrees", "half", "p_value")},
            "p_corrected": data.corrected[key],
            "verdict": data.verdict(key),
        }
        for key, difference in found.items()
    ]
    files = {
        "report.md": markdown(data).encode(),
        "report.parquet": parquet(rows),
        "differences.parquet": parquet(paired_rows),
        "fractions.png": picture(by_fraction(seeds, labels)),
        "differences.png": picture(intervals(bars)),
    }
    for fraction in data.fractions:
        if runs := data.leading(fraction):
            files[f"samples-{100 * fraction:g}.png"] = _samples(runs)
    return write_files(out, files)


def markdown(data: ReportData) -> str:
    """The text of report.md: the tables of each fraction, followed by the protocol."""
    lines = [
        "# NP-DRAW compared with other kinds of models",
        "",
        "![NLL by fraction](fractions.png) ![paired differences](differences.png)",
        "",
        note(data),
        "",
    ]
    for fraction in data.fractions:
        lines += [f"## {percent(fraction)} of the images", ""]
        for table in (
            _kinds(data, fraction),
            _cost(data, fraction),
            _numbers(data, fraction, "terms of the ELBO", (*group("term"), "parts_share")),
            _numbers(data, fraction, "edits (squared errors)", group("edit")),
            _differences(data, fraction),
            _curves(data, fraction),
            _search(data, fraction),
        ):
            lines += [*table, ""]
        if data.leading(fraction):
            lines += [f"![samples above their nearest training images](samples-{100 * fraction:g}.png)", ""]
    text = yaml.safe_dump(dict(data.protocol), sort_keys=False)
    return "\n".join([*lines, "## Protocol", "", "```yaml", f"{text}```", ""])


def note(data: ReportData) -> str:
    """The paragraph that explains how to read the differences."""
    tested = sum(p == p for p in data.corrected.values())  # NaN does not equal itself
    kept = ""
    if data.served:
        kept = (
            f" NLL and ELBO leave out the {data.served:,} images that served; terms, distances, edits "
            "and curves are of all test images."
        )
    more = ", ".join(METRICS[name].title for name in TESTED if METRICS[name].better == "more")
    return (
        "Differences are NP-DRAW minus the other kind, on the same seeds and test images: mean ± half of the "
        f"{1 - LEVEL:.0%} interval by Student's t, over images and seeds together, for distances over seeds "
        f"alone. {MARKS['better']} NP-DRAW is better, {MARKS['worse']} worse, at {LEVEL:.0%} by Holm's "
        f"correction over all {tested} differences of this report; {MARKS['open']} neither is shown. More is "
        f"better in {more}, less in all others.{kept}"
    )


def _kinds(data: ReportData, fraction: float) -> list[str]:
    """A table with two rows for each kind: means ± standard errors over seeds, and the longest training.

    Two more rows give the floor and the ceiling of the distances.
    """
    others = ", others" if data.served else ""
    columns = {  # title -> (name of the number, decimals)
        f"NLL{others}": ("nll_others", 2),
        "NLL, served": ("nll_served", 2),
        f"bits/dim{others}": ("bits_per_dim", 4),
        f"ELBO{others}": ("elbo_others", 2),
        **{METRICS[name].title: (name, METRICS[name].decimals) for name in group("distance")},
    }
    rows = []
    for kind, role in product(data.kinds, ("seed", "longest")):
        if runs := [data.row(run) for run in data.runs(fraction, kind, role)]:
            title = title_of(kind)
            if role == "longest":
                still, failed = (runs[0][name] for name in ("still_improving", "failed"))
                ends = "still improving" if still else "a longer training failed"
                title += f", longest: {ends}" if still or failed else ", until it stops improving"
            cells = [spread(runs, *column) for column in columns.values()]
            means = {name: float(np.mean([row[name] for row in runs])) for name in group("cost")}
            costs = [METRICS[name].format(mean) for name, mean in means.items()]
            trials = str(len(data.search.get(fraction, {}).get(kind, ())) or "")
            seeds, given = len(runs), data.given[fraction][0]
            count = f"{seeds} of {given}" if role == "seed" and seeds < given else str(seeds)
            rows.append([title, trials, count, *cells, *costs])
    costs_head = [METRICS[name].title for name in group("cost")]
    for name, what in (("floor", "train"), ("ceiling", "noise")):
        if known := data.references.get(name):
            cells = [spread([known], *column) for column in columns.values()]
            rows.append([f"{name}: {what} against test", "", "", *cells, *[""] * len(costs_head)])
    return markdown_table(["model", "trials", "seeds", *columns, *costs_head], rows)


def _cost(data: ReportData, fraction: float) -> list[str]:
    """A line that lists the kinds whose seeds missed core_seconds by more than CLOSE, if there are any."""
    given, other = data.given[fraction][1], []
    for kind in data.kinds:
        if runs := data.runs(fraction, kind):
            spent = float(np.mean([run.numbers["core_seconds"] for run in runs]))
            if abs(spent / given - 1) > CLOSE:
                other.append(f"{title_of(kind)} {spent:,.0f}")
    return [f"Not at equal cost: of {given:g} core-seconds, {'; '.join(other)}."] if other else []


def _numbers(data: ReportData, fraction: float, title: str, names: Sequence[str]) -> list[str]:
    """A table with a row of means ± standard errors over seeds for each kind that has one of the numbers."""
    rows = []
    for kind in data.kinds:
        runs = [data.row(run) for run in data.runs(fraction, kind)]
        cells = [spread(runs, name, METRICS[name].decimals) for name in names]
        if any(cells):
            rows.append([title_of(kind), *cells])
    return markdown_table([title, *(METRICS[name].title for name in names)], rows)


def spread(rows: Sequence[Row], name: str, decimals: int) -> str:
    """The mean of the number `name` and, for several rows, its standard error; "" if no row has it."""
    values = np.array([row[name] for row in rows if row.get(name) is not None])
    if not len(values):
        return ""
    text = f"{np.mean(values):.{decimals}f}"
    return text if len(values) == 1 else f"{text} ± {standard_error(values):.{decimals}f}"


def _differences(data: ReportData, fraction: float) -> list[str]:
    """A table with a row for each other kind: the verdict and the interval of each difference."""
    found = {key[1:]: key for key in data.differences if key[0] == fraction}
    names = list(dict.fromkeys(name for name, _ in found))
    rows = []
    for kind in data.kinds:
        own = [found.get((name, kind)) for name in names]
        if seeds := [str(data.differences[key].seeds) for key in own if key]:
            cells = ["" if key is None else _interval(data, key) for key in own]
            rows.append([title_of(kind), seeds[0], *cells])
    return markdown_table(["NP-DRAW minus", "seeds", *(METRICS[name].title for name in names)], rows)


def _interval(data: ReportData, key: tuple[float, str, str]) -> str:
    """A difference as text: the mark of its verdict, its mean, and half of its interval."""
    difference, decimals = data.differences[key], METRICS[key[1]].decimals
    text = f"{MARKS[data.verdict(key)]} {difference.mean:+.{decimals}f}"
    return text if difference.seeds < 2 else f"{text} ± {difference.half:.{decimals}f}"


def _curves(data: ReportData, fraction: float) -> list[str]:
    """A table with a row for each kind: the NLL of some images for each number of draws k."""
    runs = data.leading(fraction)
    ks = sorted(runs[0].curve) if runs else []
    rows = [[title_of(run.entry.kind), *(f"{run.curve[k]:.2f}" for k in ks)] for run in runs]
    return markdown_table(["NLL of some images by k", *(f"{k:,}" for k in ks)], rows)


def _search(data: ReportData, fraction: float) -> list[str]:
    """A table with a row for each kind: the validation NLL of each trial and of the best trial's seeds."""
    trials = data.search.get(fraction, {})
    if not trials:
        return []
    most = max(map(len, trials.values()))
    rows = []
    for kind in in_order(trials):
        cells = [f"{value:.2f}" for value in trials[kind]] + ["failed"] * (most - len(trials[kind]))
        seeds = spread([run.numbers for run in data.runs(fraction, kind)], "valid_nll", 2)
        rows.append([title_of(kind), *cells, seeds])
    head = ["NLL on validation", "best trial", *map(str, range(2, most + 1)), "seeds of it"]
    note = "All trials have the same validation images. Other seeds may hold out others."
    return [*markdown_table(head, rows), "", note]


def _samples(runs: Sequence[Measured]) -> bytes:
    rows = {}
    for run in runs:
        title = title_of(run.entry.kind)
        rows[title], rows[f"{title}:\nnearest"] = map(torch.from_numpy, (run.samples, run.nearest))
    return rows_png(rows, title="samples (means), each above the training image that is nearest to it")
