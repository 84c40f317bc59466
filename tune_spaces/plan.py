"""A sweep's plan and its trials. This file imports neither Ray nor a model: the command starts with it."""

from dataclasses import dataclass, replace
from itertools import islice

from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store, fingerprint_of
from tune_spaces.selection import SELECTION_METRICS, SelectionMetric
from tune_spaces.space import Point, Space, Value, setting_of
from tune_spaces.trial_results import Status, TrialResult

DRAWS = 100  # draws for each wanted trial before a space counts as exhausted


@dataclass(frozen=True)
class Trial:
    """A point of the space, the config there, and the values of the swept settings in it."""

    point: Point
    experiment: Experiment
    settings: dict[str, Value]

    @property
    def name(self) -> str:
        """Twelve digits of the config's fingerprint: the same config is the same trial."""
        return fingerprint_of(self.experiment, "sample")[:12]

    def result(
        self,
        status: Status,
        numbers: dict[str, float] | None = None,
        score: float | None = None,
        reason: str = "",
    ) -> TrialResult:
        return TrialResult(self.name, status, self.point, self.settings, numbers or {}, score, reason)


@dataclass(frozen=True)
class Plan:
    """What a trial needs of its sweep. run: the sweep's folder. base: the config that the points vary."""

    run: Store
    base: Experiment
    space: Space
    metric: str

    @property
    def selection(self) -> SelectionMetric:
        return SELECTION_METRICS[self.metric]

    def trial(self, point: Point) -> Trial:
        """Raises UserError if the config is impossible, or if its kind of model lacks the metric."""
        experiment = self.space.experiment(self.base, point)
        if self.selection.stage not in experiment.stage_names:
            raise UserError(
                f"--metric {self.metric} is of the stage {self.selection.stage}, which model.kind "
                f"{experiment.model.kind} does not have; take valid_nll"
            )
        return Trial(point, experiment, {key: setting_of(experiment, key) for key in self.space.keys})

    def draw(self, count: int) -> list[Trial]:
        """The first `count` distinct trials, the base config first: the same ones for the same seed.

        Raises UserError if the space has fewer, or if one of them has an impossible config.
        """
        found: dict[str, Trial] = {}
        for point in islice(self.space.points(self.base.seed), DRAWS * count):
            trial = self.trial(point)
            found.setdefault(trial.name, trial)
            if len(found) == count:
                return list(found.values())
        raise UserError(f"the space has {len(found)} distinct trials; --num-samples {count} is too many")

    def with_scale(self, scale: ScaleConfig) -> "Plan":
        """The plan whose trials have the workers of `scale`."""
        return replace(self, base=self.base.model_copy(update={"scale": scale}))
