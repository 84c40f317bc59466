"""The result of each trial: a JSON file in <run>/results/. These files are the only memory of a sweep.

A trial with a result is not run again; one without a result is.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from npdraw_dist.core.storage import list_files, read_bytes
from npdraw_dist.pipeline.store import Store
from tune_spaces.space import Point, Value

FOLDER = "results"
Status = Literal["finished", "stopped", "failed"]


def label(settings: Mapping[str, Value]) -> str:
    """`bank.size 50, prior.depth 3`."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


@dataclass(frozen=True)
class TrialResult:
    """A trial that finished, was stopped early by ASHA, or failed for a reason.

    point: its coordinates in the space. settings: the swept settings. numbers: by column of the results.
    score: the last one reported to Tune; None if none was.
    """

    trial: str
    status: Status
    point: Point
    settings: dict[str, Value]
    numbers: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def line(self, metric: str) -> str:
        """The end of the trial, in a line."""
        end: str = self.status
        if self.finished:
            end += f", {metric} {self.numbers[metric]:.2f}"
        elif self.reason:
            end += f" {self.reason}" if self.status == "stopped" else f": {self.reason}"
        return f"{self.trial} {end} ({label(self.settings)})"


def write_result(run: Store, result: TrialResult) -> None:
    """Writes the result, unless the trial has one: the first result of a trial stays."""
    if not run.has(FOLDER, f"{result.trial}.json"):
        run.write_json(asdict(result), FOLDER, f"{result.trial}.json")


def read_results(run: Store) -> list[TrialResult]:
    """All results, by the names of the trials."""
    files = list_files(run.filesystem, run.path(FOLDER))
    found = [json.loads(read_bytes(run.filesystem, path)) for path, _ in files if path.endswith(".json")]
    return [TrialResult(**item) for item in found]


def find_result(run: Store, trial: str) -> TrialResult | None:
    name = f"{trial}.json"
    return TrialResult(**run.read_json(FOLDER, name)) if run.has(FOLDER, name) else None


def forget_failed(run: Store) -> None:
    """Removes the results of failed trials, so that these run again."""
    for result in read_results(run):
        if result.status == "failed":
            run.filesystem.delete_file(run.path(FOLDER, f"{result.trial}.json"))
