"""One trial: the pipeline on a config of the space, as the driver function of a Ray Tune trial.

It holds no CPU itself; the stages' own workers do. Training runs as on the command line, by Ray Train
inside, and reports the score of each validation to Tune.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from pyarrow import fs
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline import bank, parse, prior, sample, vae
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.models import load_model
from npdraw_dist.pipeline.scores import score
from npdraw_dist.pipeline.store import FOLDERS, Store
from npdraw_dist.pipeline.train_stage import as_batch, load_head, selected_record
from npdraw_dist.training.environment import RAY
from npdraw_dist.training.failures import reason_of
from npdraw_dist.training.launch import quiet_logs
from tune_spaces.cache import ensure, shared_stages, trial_store
from tune_spaces.records import IMAGES, METRICS, SCORE, Metric, Record, find_record, write_record
from tune_spaces.space import Point, Space, setting


@dataclass(frozen=True)
class Plan:
    """All that a trial needs of its sweep. base: the config that the points of the space vary."""

    filesystem: fs.FileSystem
    root: str
    base: dict[str, Any]
    space: Space
    metric: str

    @property
    def run(self) -> Store:
        return Store(self.filesystem, self.root)

    def trial(self, point: Point) -> "Trial":
        """Raises UserError where the point makes no possible config, or one that the metric is not of."""
        experiment = self.space.experiment(self.base, point)
        if METRICS[self.metric].stage not in experiment.stage_names:
            raise UserError(
                f"--metric {self.metric} is of the stage {METRICS[self.metric].stage}, which model.kind "
                f"{experiment.model.kind} does not have; take valid_nll"
            )
        return Trial(point, experiment)

    def record(self, trial: "Trial", **facts: Any) -> Record:
        settings = {key: setting(trial.experiment, key) for key in self.space.keys}
        return Record(trial=trial.name, point=trial.point, settings=settings, **facts)


@dataclass(frozen=True)
class Trial:
    point: Point
    experiment: Experiment

    @property
    def name(self) -> str:
        """Twelve digits of the config's fingerprint: the same config is the same trial."""
        return of_stage(self.experiment, "sample")[:12]


def point_of(config: Mapping[str, Any]) -> Point:
    """The point in a Tune config: given whole by our own draws, by field by Optuna."""
    return dict(config.get("point", config))


class _Report(TuneReportCallback):  # type: ignore[misc]
    """Passes the score of each validation from Ray Train's controller to Tune."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        super().after_report(run_context, [_seen(metrics[0], self.metric)], None)


def _seen(record: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    """A training record as Tune sees it."""
    return {SCORE: metric.sign * record[metric.key], IMAGES: record["images_seen"]}


def run_trial(config: dict[str, Any], plan: Plan, leases: Any) -> None:
    """The driver function. A failure is recorded with its reason, then raised to Tune."""
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    quiet_logs()
    trial = plan.trial(point_of(config))
    # Samples and scores are computed here, beside other trials: with the threads of one of its workers.
    torch.set_num_threads(trial.experiment.scale.cpus_per_worker or os.cpu_count() or 1)
    known = find_record(plan.run, trial.name)
    if known is not None:  # Optuna may propose a config again
        if known.score is not None:
            tune.report({SCORE: known.score, IMAGES: known.numbers[IMAGES]})
        return
    try:
        last, numbers = _train(trial, plan, leases)
    except Exception as error:
        write_record(plan.run, plan.record(trial, status="failed", reason=reason_of(error)))
        raise
    write_record(
        plan.run, plan.record(trial, status="finished", numbers={**numbers, **last}, score=last[SCORE])
    )
    tune.report({SCORE: last[SCORE], IMAGES: last[IMAGES]})


def _train(trial: Trial, plan: Plan, leases: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Runs all stages; returns the last report and the numbers of the results."""
    experiment, run, metric = trial.experiment, plan.run, METRICS[plan.metric]
    store = trial_store(run, experiment, trial.name)
    store.claim(experiment)

    def callbacks(stage: str) -> Sequence[TuneReportCallback]:
        return [_Report(metric)] if stage == metric.stage else []

    for stage in shared_stages(experiment):
        build = partial(_build, stage, experiment, callbacks(stage))
        ensure(run, experiment, stage, trial.name, leases, build)
    vae.run(experiment, store, callbacks("vae"))
    sample.run(experiment, store)
    return _seen(selected_record(store, metric.stage), metric), measure(store, experiment)


def _build(stage: str, experiment: Experiment, callbacks: Sequence[TuneReportCallback], store: Store) -> None:
    """Runs a shared stage, but bank and parse in a task: what it starts is not bound to Tune's bundle."""
    if stage == "prior":
        prior.run(experiment, store, callbacks)
        return
    task: Any = ray.remote(num_cpus=0)({"bank": bank.run, "parse": parse.run}[stage])
    ray.get(task.options(scheduling_strategy="DEFAULT").remote(experiment, store))


def measure(store: Store, experiment: Experiment) -> dict[str, float]:
    """The numbers of a finished trial, by column of the results.

    valid_nll: IWAE on validation images, as test_nll on test images, nats per image. seconds: of all
    its stages, shared ones included, as if it had built them alone. Baselines have no prior's numbers.
    """
    metrics = store.read_json("metrics.json")
    with store.reading("model") as folder:
        model = load_model(str(folder))
    valid = as_batch(load_head(store, "valid", experiment.eval.images))
    numbers = {
        "valid_nll": score(model, valid, experiment.eval.k, experiment.seed)["nll_iwae"],
        "test_nll": metrics["test/nll_iwae"],
        "bits_per_dim": metrics["test/bits_per_dim"],
        "parameters": store.read_json(FOLDERS["vae"], "manifest.json")["parameters"],
        "seconds": sum(metrics[f"{stage}/seconds"] for stage in experiment.stage_names),
    }
    if "prior" in experiment.stage_names:
        prior_metric = METRICS["valid_prior_nll"]
        numbers |= {
            "valid_prior_nll": selected_record(store, prior_metric.stage)[prior_metric.key],
            "test_prior_nll": metrics["prior/test_nll"],
            "canvas_mse": metrics["parse/canvas_mse"],
        }
    return numbers
