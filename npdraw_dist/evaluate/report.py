"""The report of a comparison: report.md, Parquet tables, plots, and samples beside their nearest images.

It is written from the numbers of the runs alone, so it can be written again without measuring.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.outputs import write_files
from npdraw_dist.evaluate.differences import DISTANCES, INTERVAL, OURS, Comparison, Difference, served
from npdraw_dist.evaluate.measured import Measured
from npdraw_dist.evaluate.plots import by_fraction, by_k, differences, percent, picture
from npdraw_dist.measure.bounds import bits_per_dim
from npdraw_dist.measure.metrics import METRICS
from npdraw_dist.measure.pictures import save_rows

COSTS = ("parameters", "flops", "core_seconds", "images")
NOTE = (
    "NP-DRAW minus each other kind, on the same seeds and test images: mean ± two standard errors, over "
    "images and seeds together, for distances over seeds alone. Less is better in NLL and both distances, "
    "more in ELBO, precision and recall. Nothing corrects for the number of differences."
)


def write_report(comparison: Comparison, out: str) -> list[str]:
    """Writes all files to the folder or URI `out`; returns their paths.

    Raises UserError if runs were scored on other images, or the folder cannot be written.
    """
    try:
        found = comparison.differences
    except ValueError as error:
        raise UserError(f"--compare: {error}") from None
    rows = [
        {"fraction": fraction, "measure": name, "kind": kind, **vars(difference)}
        for (fraction, name, kind), difference in found.items()
    ]
    points = [_point(comparison, run) for run in comparison.measured if run.entry.role == "seed"]
    files = {
        "report.md": markdown(comparison).encode(),
        "report.parquet": parquet([row(comparison, run) for run in comparison.measured]),
        "differences.parquet": parquet(rows),
        "fractions.png": picture(by_fraction(points)),
        "curve.png": picture(by_k(comparison)),
        "differences.png": picture(differences(comparison)),
    }
    for fraction in comparison.fractions:
        if shown := comparison.leading(fraction):
            files[f"samples-{100 * fraction:g}.png"] = _samples(shown)
    return write_files(out, files)


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def _point(comparison: Comparison, run: Measured) -> tuple[str, float, dict[str, float]]:
    numbers = {"test NLL (nats an image)": float(comparison.values(run, "nll_iwae").mean())}
    if "frechet_distance" in run.numbers:
        numbers["Frechet distance"] = run.numbers["frechet_distance"]
    return run.entry.kind, run.entry.fraction, numbers


def row(comparison: Comparison, run: Measured) -> dict[str, Any]:
    """A run's row of report.parquet: the NLL of all images, of those that served and of the others."""
    before = served(run.ids, comparison.served)
    nll = run.nll_iwae
    halves = {"nll": nll, "nll_served": nll[before], "nll_others": nll[~before]}
    entry = run.entry
    return {
        "run": entry.folder,
        "kind": entry.kind,
        "fraction": entry.fraction,
        "seed": entry.seed,
        "role": entry.role,
        "still_improving": entry.facts.get("still_improving"),
        "n": len(nll),
        **{name: float(values.mean()) if len(values) else None for name, values in halves.items()},
        "bits_per_dim": _bits(comparison, run),
        "elbo": float(run.elbo.mean()),
        **{name: run.numbers.get(name) for name in (*DISTANCES, "valid_nll", *COSTS)},
    }


def _bits(comparison: Comparison, run: Measured) -> float | None:
    """Bits per dimension of the images that served for no choice; None for binary data."""
    if "dimensions" not in run.numbers:
        return None
    nll = float(comparison.values(run, "nll_iwae").mean())
    return bits_per_dim(nll, int(run.numbers["dimensions"]))


def markdown(comparison: Comparison) -> str:
    """The tables of kinds, differences, NLL by k and trials at each fraction; then the protocol."""
    lines = [
        "# NP-DRAW compared with other kinds of models",
        "",
        "![NLL by fraction](fractions.png) ![paired differences](differences.png) ![NLL by k](curve.png)",
        "",
        NOTE,
        "",
    ]
    for fraction in comparison.fractions:
        lines += [f"## {percent(fraction)} of the images", "", *_kinds(comparison, fraction), ""]
        lines += [*_differences(comparison, fraction), "", *_curves(comparison, fraction), ""]
        lines += [*_search(comparison, fraction), ""]
        if comparison.leading(fraction):
            lines += [f"![samples above their nearest training images](samples-{100 * fraction:g}.png)", ""]
    text = yaml.safe_dump(dict(comparison.protocol), sort_keys=False)
    return "\n".join([*lines, "## Protocol", "", "```yaml", f"{text}```", ""])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, without its empty columns."""
    cells = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in zip(*cells, strict=True)]
    lines.insert(1, "|---|" + "---:|" * (len(cells) - 1))
    return lines


def _kinds(comparison: Comparison, fraction: float) -> list[str]:
    """A row for each kind, the mean ± standard error over its seeds, one for its longest training; then the
    floor and the ceiling of the distances."""
    others = ", others" if comparison.served else ""
    head = ["model", "seeds", f"NLL{others}", "NLL, served", f"bits/dim{others}", "ELBO"]
    head += [METRICS[name].title for name in DISTANCES]
    head += ["parameters", "MFLOP", "core-seconds", "images seen"]
    rows = [
        _row_of_kind(comparison, kind, role, list(runs.values()))
        for kind in comparison.kinds
        for role in ("seed", "longest")
        if (runs := comparison.runs(kind, fraction, role))
    ]
    for name, title in (("floor", "floor: train against test"), ("ceiling", "ceiling: noise against test")):
        if known := comparison.references.get(name):
            values = [f"{known[n]:.{METRICS[n].decimals}f}" if n in known else "" for n in DISTANCES]
            rows.append([title, "", "", "", "", "", *values, "", "", "", ""])
    return table(head, rows)


def _row_of_kind(comparison: Comparison, kind: str, role: str, runs: Sequence[Measured]) -> list[str]:
    title = KINDS[kind].title
    if role == "longest":
        still = runs[0].entry.facts.get("still_improving")
        title += ", longest: still improving" if still else ", until it stops improving"
    others = [float(comparison.values(run, "nll_iwae").mean()) for run in runs]
    before = []
    if comparison.served:
        before = [float(run.nll_iwae[served(run.ids, comparison.served)].mean()) for run in runs]
    bits = [value for run in runs if (value := _bits(comparison, run)) is not None]
    mean = {name: float(np.mean([run.numbers[name] for run in runs])) for name in COSTS}
    return [
        title,
        str(len(runs)),
        spread(others, 2),
        spread(before, 2),
        spread(bits, 4),
        spread([run.elbo.mean() for run in runs], 2),
        *(
            spread([run.numbers[name] for run in runs if name in run.numbers], METRICS[name].decimals)
            for name in DISTANCES
        ),
        f"{mean['parameters']:,.0f}",
        f"{mean['flops'] / 1e6:,.1f}",
        f"{mean['core_seconds']:,.0f}",
        f"{mean['images']:,.0f}",
    ]


def spread(values: Sequence[float], decimals: int) -> str:
    """The mean, and its standard error over seeds where there are several; "" of none."""
    if not len(values):
        return ""
    text = f"{np.mean(values):.{decimals}f}"
    if len(values) == 1:
        return text
    return f"{text} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{decimals}f}"


def _differences(comparison: Comparison, fraction: float) -> list[str]:
    """A row for each other kind: the interval of each difference."""
    found = {key[1:]: difference for key, difference in comparison.differences.items() if key[0] == fraction}
    names = list(dict.fromkeys(name for name, _ in found))
    head = ["NP-DRAW minus", "seeds", *(METRICS[name].title for name in names)]
    rows = []
    for kind in comparison.kinds:
        own = {name: found[name, kind] for name in names if (name, kind) in found}
        if kind != OURS and own:
            cells = [interval(own[n], METRICS[n].decimals) if n in own else "" for n in names]
            rows.append([KINDS[kind].title, str(next(iter(own.values())).seeds), *cells])
    return table(head, rows) if rows else []


def interval(difference: Difference, decimals: int) -> str:
    text = f"{difference.mean:+.{decimals}f}"
    if not difference.error:  # a number of one run
        return text
    return f"{text} ± {INTERVAL * difference.error:.{decimals}f}"


def _search(comparison: Comparison, fraction: float) -> list[str]:
    """What each kind was chosen by: the NLL of its trials, and of the seeds of the best one."""
    trials = comparison.search.get(fraction, {})
    if not trials:
        return []
    most = max(map(len, trials.values()))
    head = ["NLL on validation", "best trial", *map(str, range(2, most + 1)), "seeds of it"]
    rows = []
    for kind in (kind for kind in KINDS if kind in trials):
        runs = comparison.runs(kind, fraction).values()
        seeds = spread([run.entry.facts["valid_nll"] for run in runs], 2)
        cells = [f"{value:.2f}" for value in trials[kind]] + ["failed"] * (most - len(trials[kind]))
        rows.append([KINDS[kind].title, *cells, seeds])
    told = "All trials have the validation images of seed 0. Other seeds may hold out other images."
    return [*table(head, rows), "", told]


def _curves(comparison: Comparison, fraction: float) -> list[str]:
    """NLL of some images by k, a row for each kind."""
    runs = comparison.leading(fraction)
    if not runs:
        return []
    ks = sorted(runs[0].curve)
    rows = [[run.entry.title, *(f"{run.curve[k]:.2f}" for k in ks)] for run in runs]
    return table(["NLL of some images by k", *(f"{k:,}" for k in ks)], rows)


def _samples(runs: Sequence[Measured]) -> bytes:
    rows = {}
    for run in runs:
        assert run.samples is not None
        assert run.nearest is not None
        rows[run.entry.title] = torch.from_numpy(run.samples)
        rows[f"{run.entry.title}:\nnearest"] = torch.from_numpy(run.nearest)
    file = io.BytesIO()
    save_rows(file, rows, title="samples (means), each above the training image that is nearest to it")
    return file.getvalue()
