"""`evaluate --compare` of evaluated runs: one table and plots; all must be measured by the same protocol.

To add a column, set `compared` of a metric in measure/metrics.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pyarrow.fs import FileSystem

from npdraw_dist.config.load import differences
from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.outputs import write_files
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.evaluate.plots import Point, by_fraction, percent, picture
from npdraw_dist.evaluate.protocol import RESULT
from npdraw_dist.evaluate.report import parquet, table
from npdraw_dist.measure.metrics import COMPARED, METRICS
from npdraw_dist.measure.pictures import save_rows
from npdraw_dist.pipeline.inputs import find_run
from npdraw_dist.pipeline.models import load_model

SHOWN_SAMPLES = 12
# What must be equal for two runs to be in one table.
SAME = ("data", "split", "images", "ids_sha256", "binarize", "nll", "distance")
# Data settings that may differ: they are of a run's own training images, or of its disk.
OWN = {"fraction", "path", "seed", "splits"}


@dataclass(frozen=True)
class Run:
    """An evaluated run. numbers: by name of METRICS, and of its evaluation."""

    folder: str
    kind: str
    fraction: float
    seed: int
    numbers: Mapping[str, float]
    split: str
    protocol: Mapping[str, Any]
    distance: str | None

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    def sort_key(self) -> tuple[float, int, int, str]:
        return self.fraction, list(KINDS).index(self.kind), self.seed, self.folder

    def row(self) -> dict[str, Any]:
        """The run's row of the table; a number that it does not have is None."""
        head = {"run": self.folder, "kind": self.title, "fraction": self.fraction, "seed": self.seed}
        return {**head, **{name: self.numbers.get(name) for name in COMPARED}}

    def point(self) -> Point:
        numbers = {f"{self.split} NLL (nats an image)": self.numbers["nll_iwae"]}
        if "frechet_distance" in self.numbers:
            numbers[str(self.distance)] = self.numbers["frechet_distance"]
        return self.kind, self.fraction, numbers


def read_run(folder: str) -> Run:
    """Raises UserError if the folder is no run, or was not evaluated."""
    run = find_run(f"{folder}/model")
    if run is None:
        raise UserError(f"--compare {folder} is no run folder: it has no config.yaml")
    config = run[1]
    try:
        kind, fraction, seed = config["model"]["kind"], config["data"]["fraction"], int(config["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--compare {folder} is no run folder (config.yaml: {error})") from None
    if kind not in KINDS or not isinstance(fraction, float | int):
        raise UserError(f"--compare {folder} is of kind {kind!r} (known: {', '.join(KINDS)})")
    filesystem, path = open_filesystem(folder)
    try:
        result = json.loads(read_bytes(filesystem, f"{path}/{RESULT}"))
        protocol, split = result["protocol"], result["split"]
        numbers = {**result, **_training_cost(filesystem, path, config), "parameters": protocol["parameters"]}
        assert isinstance(result["nll_iwae"], float)
        assert isinstance(protocol["ids_sha256"], str)
    except FileNotFoundError:
        first = f"npdraw evaluate --model {folder}"
        raise UserError(f"--compare {folder} has no {RESULT}; first: {first}") from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"--compare {folder}: {RESULT} is unreadable ({error!r})") from None
    numbers = {name: value for name, value in numbers.items() if isinstance(value, float | int)}
    distance = result.get("distance")
    return Run(folder.rstrip("/"), kind, float(fraction), seed, numbers, split, protocol, distance)


def _training_cost(filesystem: FileSystem, path: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Images seen by a run's training and its seconds, over all stages; empty without metrics.json."""
    seen = 0
    try:
        metrics = json.loads(read_bytes(filesystem, f"{path}/metrics.json"))
        for stage in ("prior", "vae"):
            if f"{stage}/seconds" in metrics:
                manifest = json.loads(read_bytes(filesystem, f"{path}/{stage}/manifest.json"))
                seen += min(int(manifest["images"]), config[stage]["images"])
    except (OSError, ValueError):
        return {}
    seconds = sum(value for key, value in metrics.items() if key.endswith("/seconds") and "sample" not in key)
    return {"train_seconds": seconds, "images_seen": seen}


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


def compare_runs(folders: Sequence[str], out: str) -> list[str]:
    """Writes comparison.md, comparison.parquet, comparison.png and samples.png; returns their paths.

    Raises UserError if a run was not evaluated, or not by the protocol of the others.
    """
    runs = sorted((read_run(folder) for folder in folders), key=Run.sort_key)
    require_same_protocol(runs)
    files = {
        "comparison.md": markdown(runs).encode(),
        "comparison.parquet": parquet([run.row() for run in runs]),
        "comparison.png": picture(by_fraction([run.point() for run in runs])),
        "samples.png": _samples(runs),
    }
    return write_files(out, files)


def markdown(runs: Sequence[Run]) -> str:
    """The table, and below it the protocol that all rows share."""
    rows = [
        [run.title, percent(run.fraction), str(run.seed)]
        + [METRICS[name].format(run.numbers.get(name)) for name in COMPARED]
        for run in runs
    ]
    lines = table(["model", "fraction", "seed", *COMPARED], rows)
    protocol = yaml.safe_dump(_comparable(runs[0]), sort_keys=False)
    note = "NLL and ELBO in nats per image. The protocol of all rows:"
    return "\n".join([*lines, "", note, "", "```yaml", f"{protocol}```", ""])


def _samples(runs: Sequence[Run]) -> bytes:
    """A row of samples for each run, all with the same seed."""
    rows = {}
    for run in runs:
        model = load_model(f"{run.folder}/model")
        generator = torch.Generator(model.device).manual_seed(0)
        label = f"{run.title} {percent(run.fraction)} seed {run.seed}"
        rows[label] = model.sample(SHOWN_SAMPLES, generator).cpu()
    buffer = io.BytesIO()
    save_rows(buffer, rows)
    return buffer.getvalue()
