"""Trainings of a comparison replaced by their traces in the run folders, with a cost for each kind."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from npdraw_dist.pipeline.store import FOLDERS, Store, fingerprint_of
from tests.helpers.spaces import load_kinds
from tune_spaces import comparison, trainings
from tune_spaces.budgets import Job
from tune_spaces.options import Options
from tune_spaces.space import Kinds
from tune_spaces.trials import TrialResult, write_result

FIXED = {"npdraw": 2.0, "vae": 0.5, "vqvae": 1.0}  # core-seconds of a training, whatever its budget
MS = {"npdraw": 4.0, "vae": 1.0, "vqvae": 2.0}  # and of an image
SECONDS = 30.0


def third_is_best(job: Job) -> float:
    """The third trial of each kind is the best, and twice the time brings a nat, four times nothing."""
    if job.folder == "longer":
        return 79.0
    return 80.0 if job.name.endswith("-2") or job.folder == "seeds" else 90.0


@dataclass
class FakeTrainings:
    """Writes the files of a training. nll(job): its validation NLL. failing: names of runs that fail.

    later: kind -> factor of its cost after the rates were measured. ended: runs that ended early. unprobed:
    runs whose cost cannot be measured. trained: the jobs so far.
    """

    nll: Callable[[Job], float] = third_is_best
    failing: Sequence[str] = ()
    later: Mapping[str, float] = field(default_factory=dict)
    ended: Sequence[str] = ()
    unprobed: Sequence[str] = ()
    trained: list[Job] = field(default_factory=list)

    def __call__(self, run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
        for job in jobs:
            self.trained.append(job)
            if job.name not in self.failing:
                self._leave(trainings.store_of(run, job), job, with_scores)
                continue
            write_result(run, TrialResult(job.name, "failed", job.point, job.settings, reason="not finite"))

    def probe(self, jobs: Sequence[Job]) -> dict[str, float | str]:
        return {job.name: "not finite" if job.name in self.unprobed else MS[job.kind] for job in jobs}

    def _leave(self, store: Store, job: Job, with_scores: bool) -> None:
        experiment = job.experiment
        store.claim(experiment)
        stages = [stage for stage in experiment.stage_names if stage in FOLDERS]
        images = experiment.vae.images // (4 if job.name in self.ended else 1)
        spent = FIXED[job.kind] + MS[job.kind] * images / 1000
        if job.folder != "rates":
            spent *= self.later.get(job.kind, 1.0)
        for stage in stages:
            made = {"core_seconds": spent / len(stages), "images": images, "parameters": 1000}
            if stage in ("prior", "vae"):
                made = made | {"core_seconds": made["core_seconds"] + 9, "validation_core_seconds": 9.0}
            store.write_manifest({"fingerprint": fingerprint_of(experiment, stage), **made}, FOLDERS[stage])
        if with_scores:
            metrics = {"valid/nll_iwae": self.nll(job), "valid/bits_per_dim": 0.1}
            store.write_json({"fingerprint": fingerprint_of(experiment, "sample"), **metrics}, "metrics.json")


def compare(
    folder: Path,
    execute: trainings.Train | None = None,
    flags: Mapping[str, Any] = MappingProxyType({}),
    space: Kinds | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A comparison of three kinds, with three trials each, in `folder`/c; its plan. changes: of options."""
    own = {"storage": str(folder), "name": "c", "core_seconds": SECONDS, "seeds": 2, "num_samples": 3}
    options = Options(**{"space": "comparison", "kinds": ",".join(FIXED), **own, **changes})
    fakes = execute if isinstance(execute, FakeTrainings) else FakeTrainings()
    kinds = space or load_kinds("comparison")
    comparison.run(options, kinds, dict(flags), execute or fakes, fakes.probe)
    return plan_of(folder)


def plan_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "c" / "comparison.json").read_text()))
