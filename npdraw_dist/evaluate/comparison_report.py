"""The report of a comparison: report.md, report.parquet, plots, and samples beside their nearest images.

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
from npdraw_dist.evaluate.claims import DISTANCES, Claim, claims, image_values, of_kind, served
from npdraw_dist.evaluate.comparison_plots import by_fraction, by_k, differences, percent, picture
from npdraw_dist.evaluate.measured import Measured
from npdraw_dist.measure.bounds import bits_per_dim
from npdraw_dist.measure.pictures import save_rows

HEADINGS = {
    "loss": "What NP-DRAW loses",
    "open": "What is not told apart",
    "gain": "What NP-DRAW gains",
}
References = Mapping[str, Mapping[str, float]]  # `floor` and `ceiling` -> distance -> value
Search = Mapping[float, Mapping[str, Sequence[float]]]  # fraction -> kind -> NLL of its trials, best first


def write_report(
    measured: Sequence[Measured],
    search: Search,
    references: References,
    protocol: Mapping[str, Any],
    skipped: int,
    out: str,
) -> list[str]:
    """Writes all files to the folder or URI `out`; returns their paths. skipped: images that served before.

    Raises UserError if runs were scored on other images, or the folder cannot be written.
    """
    try:
        found = claims(measured, skipped)
    except ValueError as error:
        raise UserError(f"--compare: {error}") from None
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row(m, skipped) for m in measured]), parquet)
    files = {
        "report.md": markdown(measured, search, found, references, protocol, skipped).encode(),
        "report.parquet": parquet.getvalue(),
        "fractions.png": picture(by_fraction(measured, skipped)),
        "curve.png": picture(by_k(measured)),
        "differences.png": picture(differences(found)),
    }
    for fraction in sorted({m.entry.fraction for m in measured}, reverse=True):
        shown = [m for m in measured if m.entry.fraction == fraction and m.samples is not None]
        if shown:
            files[f"samples-{100 * fraction:g}.png"] = _samples(shown)
    return write_files(out, files)


def row(run: Measured, skipped: int) -> dict[str, Any]:
    """A run's row of report.parquet: the NLL of all images, of those that served and of the others."""
    before = served(run.ids, skipped)
    halves = {"nll": run.nll, "nll_served": run.nll[before], "nll_others": run.nll[~before]}
    entry = run.entry
    return {
        "run": entry.folder,
        "kind": entry.kind,
        "fraction": entry.fraction,
        "seed": entry.seed,
        "role": entry.role,
        "still_improving": entry.facts.get("still_improving"),
        "n": len(run.nll),
        **{name: float(values.mean()) if len(values) else None for name, values in halves.items()},
        "bits_per_dim": _bits(run, skipped),
        "elbo": float(run.elbo.mean()),
        **{measure.name: run.numbers.get(measure.name) for measure in DISTANCES},
        **{
            name: run.numbers.get(name)
            for name in ("valid_nll", "parameters", "flops", "core_seconds", "images")
        },
    }


def _bits(run: Measured, skipped: int) -> float | None:
    """Bits per dimension of the images that served for no choice; None of binary data."""
    if "dimensions" not in run.numbers:
        return None
    nll = float(image_values(run, "nll", skipped).mean())
    return bits_per_dim(nll, int(run.numbers["dimensions"]))


def markdown(
    measured: Sequence[Measured],
    search: Search,
    found: Sequence[Claim],
    references: References,
    protocol: Mapping[str, Any],
    skipped: int,
) -> str:
    """Sentences first, what NP-DRAW loses before all, then the tables and the protocol."""
    lines = ["# NP-DRAW compared with other kinds of models", ""]
    for verdict, heading in HEADINGS.items():
        own = [claim.sentence() for claim in found if claim.verdict == verdict]
        lines += [f"## {heading}", "", *(f"- {text}" for text in own or ["Nothing."]), ""]
    lines += [
        "A difference is ours minus the other's of the same seed and the same images, ± two standard errors "
        "over images and seeds together. Distances have errors over seeds alone.",
        "",
        "![NLL by fraction](fractions.png) ![paired differences](differences.png) ![NLL by k](curve.png)",
        "",
    ]
    for fraction in sorted({m.entry.fraction for m in measured}, reverse=True):
        runs = [m for m in measured if m.entry.fraction == fraction]
        lines += [f"## {percent(fraction)} of the images", "", *_table(runs, references, skipped), ""]
        lines += [*_curves(runs), "", *_search(runs, search.get(fraction, {})), ""]
        if any(m.samples is not None for m in runs):
            lines += [f"![samples above their nearest training images](samples-{100 * fraction:g}.png)", ""]
    text = yaml.safe_dump(dict(protocol), sort_keys=False)
    return "\n".join([*lines, "## Protocol", "", "```yaml", f"{text}```", ""])


def _table(measured: Sequence[Measured], references: References, skipped: int) -> list[str]:
    """A row for each kind, the mean ± standard error over its seeds, one for its longest training; then the
    floor and the ceiling of the distances."""
    distances = [m for m in DISTANCES if any(m.name in run.numbers for run in measured)]
    fraction = measured[0].entry.fraction
    others = ", others" if skipped else ""
    head = ["model", "seeds", f"NLL{others}", "NLL, served", f"bits/dim{others}", "ELBO"]
    head += [m.title for m in distances]
    head += ["parameters", "MFLOP", "core-seconds", "images seen"]
    rows = []
    for kind in KINDS:
        for role in ("seed", "longest"):
            runs = list(of_kind(measured, kind, fraction, role).values())
            if runs:
                rows.append(_table_row(kind, role, runs, skipped, [m.name for m in distances]))
    for name, title in (("floor", "floor: train against test"), ("ceiling", "ceiling: noise against test")):
        if distances and name in references:
            values = [f"{references[name][m.name]:.{m.decimals}f}" for m in distances]
            rows.append([title, "", "", "", "", "", *values, "", "", "", ""])
    # Without images that served, or with binary data, a column is empty.
    cells = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in zip(*cells, strict=True)]
    lines.insert(1, "|---|" + "---:|" * (len(cells) - 1))
    return lines


def _table_row(
    kind: str, role: str, runs: Sequence[Measured], skipped: int, distances: Sequence[str]
) -> list[str]:
    title = KINDS[kind].title
    if role == "longest":
        still = runs[0].entry.facts.get("still_improving")
        title += ", longest: still improving" if still else ", until it stops improving"
    others = [float(image_values(run, "nll", skipped).mean()) for run in runs]
    before = [float(run.nll[served(run.ids, skipped)].mean()) for run in runs] if skipped else []
    bits = [value for run in runs if (value := _bits(run, skipped)) is not None]
    decimals = {m.name: m.decimals for m in DISTANCES}
    cells = [
        title,
        str(len(runs)),
        spread(others, 2),
        spread(before, 2),
        spread(bits, 4),
        spread([r.elbo.mean() for r in runs], 2),
    ]
    cells += [spread([r.numbers[n] for r in runs if n in r.numbers], decimals[n]) for n in distances]
    mean = {
        n: float(np.mean([r.numbers[n] for r in runs]))
        for n in ("parameters", "flops", "core_seconds", "images")
    }
    cells += [f"{mean['parameters']:,.0f}", f"{mean['flops'] / 1e6:,.1f}"]
    return [*cells, f"{mean['core_seconds']:,.0f}", f"{mean['images']:,.0f}"]


def spread(values: Sequence[float], decimals: int) -> str:
    """The mean, and its standard error over seeds where there are several; "" of none."""
    if not len(values):
        return ""
    text = f"{np.mean(values):.{decimals}f}"
    if len(values) == 1:
        return text
    return f"{text} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{decimals}f}"


def _search(measured: Sequence[Measured], trials: Mapping[str, Sequence[float]]) -> list[str]:
    """What each kind was chosen by: the NLL of its trials, and of the seeds of the best one."""
    if not trials:
        return []
    most = max(map(len, trials.values()))
    head = ["NLL on validation", "best trial", *map(str, range(2, most + 1)), "seeds of it"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (most + 1)]
    for kind in (kind for kind in KINDS if kind in trials):
        runs = of_kind(measured, kind, measured[0].entry.fraction, "seed").values()
        seeds = spread([run.entry.facts["valid_nll"] for run in runs], 2)
        cells = [f"{value:.2f}" for value in trials[kind]] + ["failed"] * (most - len(trials[kind]))
        lines.append("| " + " | ".join([KINDS[kind].title, *cells, seeds]) + " |")
    told = "All trials have the validation images of seed 0. Other seeds may hold out other images."
    return [*lines, "", told]


def _curves(measured: Sequence[Measured]) -> list[str]:
    """NLL of some images by k, a row for each kind."""
    runs = [run for run in measured if run.curve]
    if not runs:
        return []
    ks = sorted(runs[0].curve)
    lines = ["| NLL of some images by k | " + " | ".join(f"{k:,}" for k in ks) + " |"]
    lines.append("|---|" + "---:|" * len(ks))
    for run in runs:
        lines.append(f"| {run.entry.title} | " + " | ".join(f"{run.curve[k]:.2f}" for k in ks) + " |")
    return lines


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
