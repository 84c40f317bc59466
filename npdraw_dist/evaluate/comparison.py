"""Many evaluated runs in one table and in plots, of the same protocol only.

N runs. Distances are of the extractor that the protocol names.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from matplotlib.figure import Figure

from npdraw_dist.config.load import differences
from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import open_filesystem, read_bytes, write_bytes
from npdraw_dist.evaluate.protocol import RESULT
from npdraw_dist.measure.metrics import COMPARED, METRICS
from npdraw_dist.measure.pictures import save_rows
from npdraw_dist.pipeline.models import load_model

SHOWN_SAMPLES = 12
# What must be the same for two numbers to stand in one table.
SAME = ("data", "split", "images", "binarize", "nll", "distance")
# Of the data, what a run's own training images and its folder on disk are.
OWN = {"fraction", "path", "seed", "splits"}


@dataclass(frozen=True)
class Run:
    """A run folder: its config, its evaluation and what its training took."""

    folder: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    trained: Mapping[str, float]

    @property
    def kind(self) -> str:
        return KINDS[self.config["model"]["kind"]].title

    @property
    def fraction(self) -> float:
        return float(self.config["data"]["fraction"])

    @property
    def label(self) -> str:
        return f"{self.kind} {_percent(self.fraction)} seed {self.config['seed']}"

    def place(self) -> tuple[float, int, int, str]:
        """Its place in the table: by fraction, kind and seed."""
        order = list(KINDS)
        return self.fraction, order.index(self.config["model"]["kind"]), int(self.config["seed"]), self.folder

    def row(self) -> dict[str, Any]:
        """The run's line of the table; a number that it does not have is None."""
        numbers = {**self.result, **self.trained, "parameters": self.result["protocol"]["parameters"]}
        head = {"run": self.folder, "kind": self.kind, "fraction": self.fraction, "seed": self.config["seed"]}
        return {**head, **{name: numbers.get(name) for name in COMPARED}}


def read_run(folder: str) -> Run:
    """Raises UserError where the folder is no run, or was not evaluated."""
    filesystem, path = open_filesystem(folder)
    try:
        config = yaml.safe_load(read_bytes(filesystem, f"{path}/config.yaml"))
        kind, fraction = config["model"]["kind"], config["data"]["fraction"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"--compare {folder} is no run folder ({error!r})") from None
    if kind not in KINDS or not isinstance(fraction, float | int):
        raise UserError(f"--compare {folder} is of kind {kind!r} (known: {', '.join(KINDS)})")
    try:
        result = json.loads(read_bytes(filesystem, f"{path}/{RESULT}"))
        assert isinstance(result["protocol"], dict)
        assert isinstance(result["nll_iwae"], float)
    except FileNotFoundError:
        first = f"python -m npdraw_dist.evaluate --model {folder}/model"
        raise UserError(f"--compare {folder} has no {RESULT}; first: {first}") from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"--compare {folder}: {RESULT} is unreadable ({error!r})") from None
    return Run(folder.rstrip("/"), config, result, _trained(filesystem, path, config))


def _trained(filesystem: Any, path: str, config: Mapping[str, Any]) -> dict[str, float]:
    """The images a run's training saw and the seconds it took, over its stages, where metrics.json tells."""
    try:
        metrics = json.loads(read_bytes(filesystem, f"{path}/metrics.json"))
    except (OSError, ValueError):
        return {}
    stages = [stage for stage in ("prior", "vae") if f"{stage}/seconds" in metrics]
    seconds = sum(value for key, value in metrics.items() if key.endswith("/seconds") and "sample" not in key)
    return {"train_seconds": seconds, "images_seen": sum(config[stage]["images"] for stage in stages)}


def require_same_protocol(runs: Sequence[Run]) -> None:
    """Raises UserError that names the differences of the first run that was measured another way."""
    first = _comparable(runs[0])
    for run in runs[1:]:
        changed = differences(first, _comparable(run))
        if changed:
            raise UserError(
                f"{runs[0].folder} and {run.folder} were not measured the same way ({'; '.join(changed)})"
            )


def _comparable(run: Run) -> dict[str, Any]:
    protocol = run.result["protocol"]
    kept = {name: protocol.get(name) for name in SAME}
    kept["data"] = {k: v for k, v in protocol["data"].items() if k not in OWN}
    if isinstance(kept["distance"], dict):
        kept["distance"] = {k: v for k, v in kept["distance"].items() if k != "seed"}
    return {**kept, "n": run.result["n"]}


def compare(folders: Sequence[str], out: str) -> list[str]:
    """Writes comparison.md, comparison.parquet, comparison.png and samples.png; returns their paths.

    Raises UserError where a run was not evaluated, or not by the protocol of the others.
    """
    runs = sorted((read_run(folder) for folder in folders), key=Run.place)
    require_same_protocol(runs)
    filesystem, path = open_filesystem(out)
    table = pa.Table.from_pylist([run.row() for run in runs])
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    files = {
        "comparison.md": markdown(runs).encode(),
        "comparison.parquet": parquet.getvalue(),
        "comparison.png": _picture(comparison_plot(runs)),
        "samples.png": _samples(runs),
    }
    try:
        for name, content in files.items():
            write_bytes(filesystem, f"{path}/{name}", content)
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error}") from None
    return [f"{out.rstrip('/')}/{name}" for name in files]


def markdown(runs: Sequence[Run]) -> str:
    """The table, and under it the protocol that all rows share."""
    columns = [name for name in COMPARED if any(run.row()[name] is not None for run in runs)]
    head = ["model", "fraction", "seed", *columns]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for run in runs:
        row = run.row()
        cells = [METRICS[name].format(row[name]) for name in columns]
        lines.append(
            "| " + " | ".join([run.kind, _percent(run.fraction), str(run.config["seed"]), *cells]) + " |"
        )
    protocol = yaml.safe_dump(_comparable(runs[0]), sort_keys=False)
    note = "NLL and ELBO in nats per image. The protocol of all rows:"
    return "\n".join([*lines, "", note, "", "```yaml", f"{protocol}```", ""])


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def comparison_plot(runs: Sequence[Run]) -> Figure:
    """NLL, and the distance where it was measured, against the fraction: dots are runs, lines their means."""
    measures = {"nll_iwae": f"{runs[0].result['split']} NLL (nats per image)"}
    if all("frechet_distance" in run.result for run in runs):
        measures["frechet_distance"] = str(runs[0].result["distance"])
    figure = Figure(figsize=(5.2 * len(measures), 4.0), layout="constrained")
    for axis, (name, label) in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures.items(), strict=True
    ):
        for number, kind in enumerate(kind.title for kind in KINDS.values()):
            mine = [run for run in runs if run.kind == kind]
            points = sorted({run.fraction for run in mine})
            means = [
                sum(values) / len(values)
                for values in ([r.result[name] for r in mine if r.fraction == x] for x in points)
            ]
            if mine:
                axis.plot(points, means, color=f"C{number}", label=kind)
                axis.scatter(
                    [r.fraction for r in mine], [r.result[name] for r in mine], color=f"C{number}", s=18
                )
        axis.set_xscale("log")
        shares = sorted({run.fraction for run in runs})
        axis.set_xticks(shares, [_percent(share) for share in shares], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("share of the training images")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend()
    return figure


def _picture(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _samples(runs: Sequence[Run]) -> bytes:
    """A row of samples a run, all drawn with one seed."""
    rows = {}
    for run in runs:
        model = load_model(f"{run.folder}/model")
        generator = torch.Generator(model.device).manual_seed(0)
        rows[run.label] = model.sample(SHOWN_SAMPLES, generator).cpu()
    buffer = io.BytesIO()
    save_rows(buffer, rows)
    return buffer.getvalue()
