"""Implements `evaluate --compare`, a table and samples of runs that were evaluated by the same protocol.

To add a column, set `compared=True` for a metric in measure/metrics.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from npdraw_dist.config.load import differences
from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.pages import rows_png
from npdraw_dist.evaluate.settings import RESULT
from npdraw_dist.measure.metrics import COMPARED, METRICS
from npdraw_dist.measure.tables import markdown_table, parquet, percent
from npdraw_dist.pipeline.inputs import find_run
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.trained_models import load_model
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, write_files

SHOWN_SAMPLES = 12
# The facts of the protocol that must be equal for all runs of a table.
SAME = ("data", "split", "images", "ids_sha256", "binarize", "nll", "distance")
# Data settings that may differ, since they describe a run's own training images or the place of its files.
OWN = {"fraction", "valid_fraction", "path", "seed", "splits", "classes"}


@dataclass(frozen=True)
class Run:
    """An evaluated run.

    row: the run's folder, kind, data.fraction and seed, and the COMPARED numbers, None where one is missing.
    result: `n` and `protocol` from the run's evaluation.json.
    """

    row: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def label(self) -> list[str]:
        """The first four cells of the run's row: folder, title of the kind, data.fraction and seed."""
        row = self.row
        return [row["run"], KINDS[row["kind"]].title, percent(row["fraction"]), str(row["seed"])]

    def protocol(self) -> dict[str, Any]:
        """The facts of the protocol that must be equal for all runs of a table."""
        own = self.result["protocol"]
        kept = {name: own.get(name) for name in SAME}
        kept["data"] = {k: v for k, v in own["data"].items() if k not in OWN}
        if isinstance(kept["distance"], dict):
            kept["distance"] = {k: v for k, v in kept["distance"].items() if k != "seed"}
        return {**kept, "n": self.result["n"]}


def read_run(folder: str) -> Run:
    """Reads an evaluated run. Raises UserError if `folder` is no run, or has no readable evaluation.json."""
    run = find_run(f"{folder}/model")
    if run is None:
        raise UserError(f"--compare {folder} is no run folder: it has no config.yaml")
    store, config = Store(*open_filesystem(folder)), run[1]
    if not store.has(RESULT):
        first = f"run npdraw evaluate --model {folder}"
        raise UserError(f"--compare {folder} has no {RESULT}; {first} first")
    result = store.read_json(RESULT)
    try:
        kind, fraction, seed = config["model"]["kind"], config["data"]["fraction"], config["seed"]
        head = {"run": folder.rstrip("/"), "kind": kind, "fraction": float(fraction), "seed": int(seed)}
        if kind not in KINDS:
            raise ValueError(f"model.kind is {kind!r}; the known kinds are {', '.join(KINDS)}")
        if not isinstance(result["nll_iwae"], float) or not isinstance(result["protocol"]["ids_sha256"], str):
            raise TypeError("nll_iwae or ids_sha256 is missing")
        costs = {**_training_cost(store, config), "parameters": result["protocol"]["parameters"]}
        row = {**head, **{name: (result | costs).get(name) for name in COMPARED}}
        return Run(row, {"n": result["n"], "protocol": result["protocol"]})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--compare {folder}: config.yaml or {RESULT} is unreadable ({error!r})") from None


def _training_cost(store: Store, config: Mapping[str, Any]) -> dict[str, float]:
    """The number of images that training saw, and the seconds of all stages but `sample`; {} if unknown."""
    seen, metrics = 0, store.metrics()
    for stage in ("prior", "vae"):
        if f"{stage}/seconds" in metrics:
            if not store.has(stage, "manifest.json"):
                return {}
            seen += min(int(store.read_json(stage, "manifest.json")["images"]), config[stage]["images"])
    seconds = sum(value for key, value in metrics.items() if key.endswith("/seconds") and "sample" not in key)
    return {"train_seconds": seconds, "images_seen": seen} if metrics else {}


def compare_runs(folders: Sequence[str], out: str) -> list[str]:
    """Writes comparison.md, comparison.parquet and samples.png; returns their paths.

    Raises UserError if a run was not evaluated, or if a run has another protocol than the first one.
    """
    kinds = list(KINDS)
    runs = [read_run(folder) for folder in sorted(folders)]
    runs.sort(key=lambda run: (run.row["fraction"], kinds.index(run.row["kind"]), run.row["seed"]))
    first = runs[0]
    for run in runs[1:]:
        if changed := differences(first.protocol(), run.protocol()):
            raise UserError(
                f"{first.row['run']} and {run.row['run']} were not measured the same way "
                f"({'; '.join(changed)})"
            )
    files = {
        "comparison.md": markdown(runs).encode(),
        "comparison.parquet": parquet([{**run.row, "kind": run.label[1]} for run in runs]),
        "samples.png": _samples(runs),
    }
    return write_files(out, files)


def markdown(runs: Sequence[Run]) -> str:
    """The table of the runs in Markdown, followed by their common protocol."""
    rows = [[*run.label, *(METRICS[name].format(run.row[name]) for name in COMPARED)] for run in runs]
    lines = markdown_table(["run", "model", "fraction", "seed", *COMPARED], rows)
    protocol = yaml.safe_dump(runs[0].protocol(), sort_keys=False)
    note = "NLL and ELBO in nats per image. The protocol of all rows:"
    return "\n".join([*lines, "", note, "", "```yaml", f"{protocol}```", ""])


def _samples(runs: Sequence[Run]) -> bytes:
    """A PNG with a row of samples from each run's model, all drawn with the same seed."""
    rows = {}
    for run in runs:
        model = load_model(f"{run.row['run']}/model")
        generator = torch.Generator(model.device).manual_seed(0)
        name, title, fraction, seed = run.label
        rows[f"{name}\n{title} {fraction} seed {seed}"] = model.sample(
            SHOWN_SAMPLES, generator=generator
        ).cpu()
    return rows_png(rows)
