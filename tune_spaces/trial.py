"""Runs one trial (all stages of a config of the space) as the function of a Ray Tune trial.

The function reserves no CPU, but the workers of its stages do. Ray Train trains inside the trial as it does
for the command line, and reports the score of each validation to Tune.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.distributed.failures import is_of_storage, lost, reason_of
from npdraw_dist.distributed.nodes import require_on_this_node
from npdraw_dist.distributed.start import RAY, quiet_logs
from npdraw_dist.pipeline.run import STAGES
from npdraw_dist.pipeline.stage import Watch
from npdraw_dist.pipeline.store import FOLDERS, Store
from npdraw_dist.pipeline.train_stage import selected_record
from npdraw_dist.system.landmarks import Landmarks
from tune_spaces.shared_stages import build_alone
from tune_spaces.space import IMAGES, SCORE, SWEEP_METRICS, Point, SweepMetric
from tune_spaces.trials import Plan, Trial, find_result, write_result


def point_of(config: Mapping[str, Any]) -> Point:
    """The point in a Tune config: under the key `point`, or the config itself if Optuna proposed it."""
    return dict(config.get("point", config))


class _Report(TuneReportCallback):  # type: ignore[misc]
    """Passes the score of each validation from Ray Train's controller to Tune."""

    def __init__(self, metric: SweepMetric) -> None:
        super().__init__()
        self.metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        # A checkpoint without a validation, or with a loss that is not finite, reports `Criterion.worst`.
        if abs(metrics[0][self.metric.key]) < sys.float_info.max:
            super().after_report(run_context, [tune_report(metrics[0], self.metric)], None)


def tune_report(record: Mapping[str, Any], metric: SweepMetric) -> dict[str, float]:
    """The report to Tune (score and images seen), from a record of training."""
    return {SCORE: metric.sign * record[metric.key], IMAGES: record["images_seen"]}


def run_trial(config: dict[str, Any], plan: Plan, folders: Sequence[Landmarks]) -> None:
    """Runs a trial and writes its result; records a failure with its reason, then raises the error to Tune.

    A failure of the storage or the loss of a process is not recorded, so Tune starts the trial again, up to
    scale.max_failures times. After that, `SweepCallback` records the loss of a process as a failure, but the
    next start of the sweep repeats a trial whose storage failed. folders: folders that this node must see.
    """
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    quiet_logs()
    require_on_this_node(folders)  # else the trial would write to this node's own disk
    trial = plan.trial(point_of(config))
    # This process computes samples and scores, with the threads of one worker, while other trials run.
    torch.set_num_threads(trial.experiment.scale.cpus_per_worker or 1)
    known = find_result(plan.run, trial.name)
    if known is not None:  # Optuna may propose a config again
        if known.score is not None:
            tune.report({SCORE: known.score, IMAGES: known.numbers[IMAGES]})
        return
    try:
        last, numbers = _train(trial, plan, folders)
    except Exception as error:
        if not is_of_storage(error) and lost(error) is None:
            write_result(plan.run, trial.result("failed", reason=reason_of(error)))
        raise
    write_result(plan.run, trial.result("finished", numbers={**numbers, **last}))
    tune.report(last)


def _train(
    trial: Trial, plan: Plan, folders: Sequence[Landmarks]
) -> tuple[dict[str, float], dict[str, float]]:
    """Runs all stages; returns the last report to Tune and the numbers of the result."""
    experiment, metric = trial.experiment, plan.decides
    store = plan.cache.trial_store(experiment, trial.name)
    store.claim(experiment)

    def watch(stage: str) -> Watch:
        return Watch(ray_callbacks=[_Report(metric)] if stage == metric.stage else [])

    for shared in plan.cache.stages(experiment):
        shared.ensure(partial(_build, shared.stage, experiment, watch(shared.stage), folders))
    STAGES["vae"].run(experiment, store, watch("vae"))
    for split in ("valid", "test") if plan.space.curve else ("valid",):
        STAGES["sample"].run(with_changes(experiment, {"eval": {"split": split}}), store)
    return tune_report(selected_record(store, metric.stage), metric), trial_numbers(store, experiment)


def _build(
    stage: str,
    experiment: Experiment,
    watch: Watch,
    folders: Sequence[Landmarks],
    store: Store,
) -> None:
    """Runs a shared stage. All but the prior run in a task, which is not bound to Tune's placement group."""
    if stage == "prior":
        STAGES[stage].run(experiment, store, watch)
        return
    task: Any = ray.remote(num_cpus=0)(build_alone).options(scheduling_strategy="DEFAULT")
    ray.get(task.remote(STAGES[stage].run, experiment, store, folders))


def trial_numbers(store: Store, experiment: Experiment) -> dict[str, float]:
    """Column of the results -> number of a finished trial.

    valid_nll, test_nll: IWAE bound on some images of the split, nats per image. seconds: the sum over all
    stages, including shared stages.
    """
    metrics = store.read_json("metrics.json")
    numbers = {
        "train_images": store.read_json(FOLDERS["data"], "manifest.json")["splits"]["train"],
        "valid_nll": metrics["valid/nll_iwae"],
        "bits_per_dim": metrics["valid/bits_per_dim"],
        "parameters": store.read_json(FOLDERS["vae"], "manifest.json")["parameters"],
        "seconds": sum(metrics[f"{stage}/seconds"] for stage in experiment.stage_names),
    }
    for column, key in (("test_nll", "test/nll_iwae"), ("test_nll_se", "test/nll_iwae_se")):
        if key in metrics:
            numbers[column] = metrics[key]
    if "prior" in experiment.stage_names:
        of_prior = SWEEP_METRICS["valid_prior_nll"]
        numbers |= {
            "valid_prior_nll": selected_record(store, of_prior.stage)[of_prior.key],
            "canvas_mse": metrics["parse/canvas_mse"],
        }
    return numbers
