"""Many evaluated runs in one table and in plots; all must be measured by the same protocol.

To add a column, set `compared` of a metric in measure/metrics.
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
from pyarrow.fs import FileSystem, FileType

from npdraw_dist.config.load import differences
from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.outputs import write_files
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.evaluate.protocol import RESULT
from npdraw_dist.measure.metrics import COMPARED, METRICS
from npdraw_dist.measure.pictures import save_rows
from npdraw_dist.pipeline.models import load_model

SHOWN_SAMPLES = 12
# What must be equal for two runs to be in one table.
SAME = ("data", "split", "images", "ids_sha256", "binarize", "nll", "distance")
# Data settings that may differ: they are of a run's own training images, or of its disk.
OWN = {"fraction", "path", "seed", "splits"}


@dataclass(frozen=True)
class Run:
    """An evaluated run. kind: its title. numbers: by name of METRICS, and of its evaluation."""

    folder: str
    kind: str
    fraction: float
    seed: int
    numbers: Mapping[str, float]
    split: str
    protocol: Mapping[str, Any]
    distance: str | None

    @property
    def label(self) -> str:
        return f"{self.kind} {_percent(self.fraction)} seed {self.seed}"

    def sort_key(self) -> tuple[float, int, int, str]:
        titles = [kind.title for kind in KINDS.values()]
        return self.fraction, titles.index(self.kind), self.seed, self.folder

    def row(self) -> dict[str, Any]:
        """The run's row of the table; a number that it does not have is None."""
        head = {"run": self.folder, "kind": self.kind, "fraction": self.fraction, "seed": self.seed}
        return {**head, **{name: self.numbers.get(name) for name in COMPARED}}


def read_run(folder: str) -> Run:
    """Raises UserError if the folder is no run, or was not evaluated."""
    filesystem, path = open_filesystem(folder)
    if filesystem.get_file_info(f"{path}/config.yaml").type != FileType.File:
        raise UserError(f"--compare {folder} is no run folder: it has no config.yaml")
    try:
        config = yaml.safe_load(read_bytes(filesystem, f"{path}/config.yaml"))
        kind, fraction, seed = config["model"]["kind"], config["data"]["fraction"], int(config["seed"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"--compare {folder} is no run folder (config.yaml: {error})") from None
    if kind not in KINDS or not isinstance(fraction, float | int):
        raise UserError(f"--compare {folder} is of kind {kind!r} (known: {', '.join(KINDS)})")
    try:
        result = json.loads(read_bytes(filesystem, f"{path}/{RESULT}"))
        protocol = result["protocol"]
        parameters = protocol["parameters"]
        if "ids_sha256" not in protocol:  # of an older version, which drew the splits by its own seed
            raise UserError(
                f"--compare {folder}: {RESULT} does not say which images were scored; evaluate it again"
            )
        assert isinstance(result["nll_iwae"], float)
    except FileNotFoundError:
        first = f"python -m npdraw_dist.evaluate --model {folder}/model"
        raise UserError(f"--compare {folder} has no {RESULT}; first: {first}") from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"--compare {folder}: {RESULT} is unreadable ({error!r})") from None
    numbers = {**result, **_training_cost(filesystem, path, config), "parameters": parameters}
    numbers = {name: value for name, value in numbers.items() if isinstance(value, float | int)}
    title, distance = KINDS[kind].title, result.get("distance")
    return Run(folder.rstrip("/"), title, float(fraction), seed, numbers, result["split"], protocol, distance)


def _training_cost(filesystem: FileSystem, path: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Images seen by a run's training and its seconds, over all stages; empty without metrics.json."""
    try:
        metrics = json.loads(read_bytes(filesystem, f"{path}/metrics.json"))
    except (OSError, ValueError):
        return {}
    stages = [stage for stage in ("prior", "vae") if f"{stage}/seconds" in metrics]
    seconds = sum(value for key, value in metrics.items() if key.endswith("/seconds") and "sample" not in key)
    manifests = {stage: f"{path}/{stage}/manifest.json" for stage in stages}
    seen = [_images_seen(filesystem, manifests[stage], config[stage]["images"]) for stage in stages]
    return {"train_seconds": seconds, "images_seen": sum(seen)}


def _images_seen(filesystem: FileSystem, manifest: str, budget: int) -> int:
    """The images that a stage trained on: less than its budget if it ended early."""
    try:
        return min(int(json.loads(read_bytes(filesystem, manifest))["images"]), budget)
    except (OSError, ValueError, KeyError, TypeError):
        return budget


def require_same_protocol(runs: Sequence[Run]) -> None:
    """Raises UserError with the differences of the first run that was measured another way."""
    first = _comparable(runs[0])
    for run in runs[1:]:
        changed = differences(first, _comparable(run))
        if changed:
            raise UserError(
                f"{runs[0].folder} and {run.folder} were not measured the same way ({'; '.join(changed)})"
            )


def _comparable(run: Run) -> dict[str, Any]:
    kept = {name: run.protocol.get(name) for name in SAME}
    kept["data"] = {k: v for k, v in run.protocol["data"].items() if k not in OWN}
    if isinstance(kept["distance"], dict):
        kept["distance"] = {k: v for k, v in kept["distance"].items() if k != "seed"}
    return {**kept, "n": run.numbers["n"]}


def compare(folders: Sequence[str], out: str) -> list[str]:
    """Writes comparison.md, comparison.parquet, comparison.png and samples.png; returns their paths.

    Raises UserError if a run was not evaluated, or not by the protocol of the others.
    """
    runs = sorted((read_run(folder) for folder in folders), key=Run.sort_key)
    require_same_protocol(runs)
    table = pa.Table.from_pylist([run.row() for run in runs])
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    files = {
        "comparison.md": markdown(runs).encode(),
        "comparison.parquet": parquet.getvalue(),
        "comparison.png": _picture(comparison_plot(runs)),
        "samples.png": _samples(runs),
    }
    return write_files(out, files)


def markdown(runs: Sequence[Run]) -> str:
    """The table, and below it the protocol that all rows share."""
    columns = [name for name in COMPARED if any(name in run.numbers for run in runs)]
    head = ["model", "fraction", "seed", *columns]
    rows = [
        [run.kind, _percent(run.fraction), str(run.seed)]
        + [METRICS[name].format(run.numbers.get(name)) for name in columns]
        for run in runs
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    lines.insert(1, "|---|" + "---:|" * (len(head) - 1))
    protocol = yaml.safe_dump(_comparable(runs[0]), sort_keys=False)
    note = "NLL and ELBO in nats per image. The protocol of all rows:"
    return "\n".join([*lines, "", note, "", "```yaml", f"{protocol}```", ""])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def comparison_plot(runs: Sequence[Run]) -> Figure:
    """NLL, and the distance if all have one, against the fraction: dots are runs, lines their means."""
    measures = {"nll_iwae": f"{runs[0].split} NLL (nats per image)"}
    if all("frechet_distance" in run.numbers for run in runs):
        measures["frechet_distance"] = str(runs[0].distance)
    figure = Figure(figsize=(5.2 * len(measures), 4.0), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, (name, label) in zip(panels, measures.items(), strict=True):
        for number, kind in enumerate(kind.title for kind in KINDS.values()):
            points = [(run.fraction, run.numbers[name]) for run in runs if run.kind == kind]
            if not points:
                continue
            fractions = sorted({x for x, _ in points})
            groups = [[y for x, y in points if x == fraction] for fraction in fractions]
            axis.plot(fractions, [sum(ys) / len(ys) for ys in groups], color=f"C{number}", label=kind)
            axis.scatter(*zip(*points, strict=True), color=f"C{number}", s=18)
        axis.set_xscale("log")
        ticks = sorted({run.fraction for run in runs})
        axis.set_xticks(ticks, [_percent(tick) for tick in ticks], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("fraction of the training images")
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
    """A row of samples for each run, all with the same seed."""
    rows = {}
    for run in runs:
        model = load_model(f"{run.folder}/model")
        generator = torch.Generator(model.device).manual_seed(0)
        rows[run.label] = model.sample(SHOWN_SAMPLES, generator).cpu()
    buffer = io.BytesIO()
    save_rows(buffer, rows)
    return buffer.getvalue()
