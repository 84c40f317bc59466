"""Defines the plan of a sweep, its trials, and their results.

The result of a trial is a JSON file in <run>/results/. These files are the only state of a sweep: a second
start runs the trials that have no result. (`Tuner.restore` would read a pickle from the run folder, and could
not add trials to those of the first start.)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

from npdraw_dist.config.load import differences
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import list_files, read_bytes
from tune_spaces.shared_stages import Cache
from tune_spaces.space import SCORE, SWEEP_METRICS, Point, Space, SweepMetric, Value, setting_of

DRAWS = 100  # draws for each wanted trial before a space counts as exhausted
FOLDER = "results"
Status = Literal["finished", "stopped", "failed"]


def label(settings: Mapping[str, Value]) -> str:
    """Settings as text, such as `bank.size 50, prior.depth 3`."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


@dataclass(frozen=True)
class TrialResult:
    """The end of a trial, which finished, was stopped early by ASHA, or failed for a reason.

    point: the trial's coordinates in the space. settings: the values of the settings that the space varies.
    numbers: column of the results -> value.
    """

    trial: str
    status: Status
    point: Point
    settings: dict[str, Value]
    numbers: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def score(self) -> float | None:
        """The last score that Tune saw; None if it saw none."""
        return self.numbers.get(SCORE)

    def line(self, metric: str) -> str:
        """The result in one line."""
        end = f", {metric} {self.numbers[metric]:.2f}" if self.finished else f": {self.reason}"
        return f"{self.trial} {self.status}{end} ({label(self.settings)})"


def write_result(run: Store, result: TrialResult) -> None:
    """Writes the result of a trial, unless the trial has a result already."""
    if not run.has(FOLDER, f"{result.trial}.json"):
        run.write_json(asdict(result), FOLDER, f"{result.trial}.json")


def read_results(run: Store) -> list[TrialResult]:
    """All results, sorted by the names of the trials."""
    paths = [path for path, _ in list_files(run.filesystem, run.path(FOLDER)) if path.endswith(".json")]
    return [TrialResult(**json.loads(read_bytes(run.filesystem, path))) for path in paths]


def find_result(run: Store, trial: str) -> TrialResult | None:
    name = f"{trial}.json"
    return TrialResult(**run.read_json(FOLDER, name)) if run.has(FOLDER, name) else None


def claim_facts(run: Store, file: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the facts that define a sweep to a file of a new run folder; returns what the file holds.

    Raises UserError with the differences if the folder holds another sweep.
    """
    facts = json.loads(json.dumps(facts, default=vars))  # the values as JSON will return them
    if not run.has(file):
        run.write_json(facts, file)
    record = run.read_json(file)
    changed = differences({key: record.get(key) for key in facts}, facts)
    if changed:
        raise UserError(f"{run.shown()} holds another sweep ({'; '.join(changed)}); take another --name")
    return record


def forget_failed(run: Store) -> None:
    """Removes the results of failed trials, so that they run again."""
    for result in read_results(run):
        if result.status == "failed":
            run.filesystem.delete_file(run.path(FOLDER, f"{result.trial}.json"))


@dataclass(frozen=True)
class Trial:
    """A point of the space, its config, and the config's values of the settings that the space varies."""

    point: Point
    experiment: Experiment
    settings: dict[str, Value]

    @property
    def name(self) -> str:
        """Twelve digits of the config's fingerprint, so that equal configs are one trial."""
        return fingerprint_of(self.experiment, "sample")[:12]

    def result(self, status: Status, **ended: Any) -> TrialResult:
        """The result of this trial. ended: the fields `numbers` and `reason`."""
        return TrialResult(self.name, status, self.point, self.settings, **ended)


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share. run: the sweep's folder. base: the config that the points vary."""

    run: Store
    base: Experiment
    space: Space
    metric: str

    @property
    def varies_data(self) -> bool:
        """Whether the space varies data.source or data.path; other data settings do not matter."""
        return not {"data.source", "data.path"}.isdisjoint(self.space.keys)

    @property
    def cache(self) -> Cache:
        return Cache(self.run, self.varies_data)

    @property
    def decides(self) -> SweepMetric:
        return SWEEP_METRICS[self.metric]

    def trial(self, point: Point) -> Trial:
        """The trial at a point. Raises UserError if its config is impossible or its kind lacks the metric."""
        experiment = self.space.experiment(self.base, point)
        if self.decides.stage not in experiment.stage_names:
            raise UserError(
                f"--metric {self.metric} belongs to the stage {self.decides.stage}, which model.kind "
                f"{experiment.model.kind} does not have; take valid_nll"
            )
        return Trial(point, experiment, {key: setting_of(experiment, key) for key in self.space.keys})

    def draw(self, count: int) -> list[Trial]:
        """The first `count` distinct trials, which depend on the seed alone; the base config is the first.

        Raises UserError if the space has fewer trials, or if the config of a trial is impossible.
        """
        found: dict[str, Trial] = {}
        for point in islice(self.space.points(self.base.seed), DRAWS * count):
            trial = self.trial(point)
            found.setdefault(trial.name, trial)
            if len(found) == count:
                return list(found.values())
        raise UserError(f"the space has {len(found)} distinct trials; --num-samples {count} is too many")
