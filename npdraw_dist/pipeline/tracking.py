"""Sends the settings, metrics and final numbers of a run to Weights & Biases or MLflow (`--track`).

Only the driver calls the service, at the address in the service's own environment variables. The file
tracking.json keeps the run's id in the service, by which a resumed run continues the same record.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.stage import Watcher
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError

IDS = "tracking.json"
PROJECT = "npdraw_dist"


class Tracker(Protocol):
    """The record of a run in a service. id: the id by which a resumed run finds the record."""

    id: str

    def log(self, values: Mapping[str, float], images_seen: int, stage: str) -> None:
        """Sends metrics of a stage by name (`valid/nll`). After a restart, some rows are sent again."""

    def finish(self, numbers: Mapping[str, float], failed: bool) -> None:
        """Ends the record, and adds the final numbers of the run, if any."""


@contextlib.contextmanager
def tracked(experiment: Experiment, store: Store, name: str) -> Iterator[Watcher]:
    """Yields a function that sends rows of metrics to the service `name`.

    Raises UserError if the service cannot start. If it fails later, the run continues and a message says so.
    """
    ids = store.read_json(IDS) if store.has(IDS) else {}
    make: type[Tracker] = _Wandb if name == "wandb" else _Mlflow
    try:
        tracker = make(experiment, store, ids.get(name))  # type: ignore[call-arg]
    except Exception as error:  # the packages do not document the types of their errors
        raise UserError(f"--track {name} cannot start: {_line(error)}") from None
    if name not in ids:
        store.write_json({**ids, name: tracker.id}, IDS)
    alive, failed = True, True

    def send(request: Callable[..., None], *values: Any) -> None:
        nonlocal alive
        try:
            if alive:
                request(*values)
        except Exception as error:
            alive = False
            console.print(f"tracking ends: {_line(error)}", markup=False)

    def log(row: Mapping[str, float], stage: str) -> None:
        values = {name: value for name, value in row.items() if name not in ("images_seen", "step")}
        send(tracker.log, values, int(row["images_seen"]), stage)

    try:
        yield log
        failed = False
    finally:
        # Booleans and texts, such as fingerprints, are left out.
        numbers = {k: float(v) for k, v in store.metrics().items() if type(v) in (int, float)}
        send(tracker.finish, numbers, failed)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Wandb:
    def __init__(self, experiment: Experiment, store: Store, known: str | None) -> None:
        import wandb

        self.id = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=store.name,
            id=self.id,
            resume="allow",
            config=flat(experiment.model_dump(mode="json")),
            dir=store.root if store.is_local else tempfile.gettempdir(),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        # Each stage counts its own images, so its metrics have an axis of their own.
        for stage in experiment.stage_names:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/images_seen")

    def log(self, values: Mapping[str, float], images_seen: int, stage: str) -> None:
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({**named, f"{stage}/images_seen": images_seen})

    def finish(self, numbers: Mapping[str, float], failed: bool) -> None:
        self._run.summary.update(dict(numbers))
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, experiment: Experiment, store: Store, known: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.id = mlflow.start_run(known, run_name=store.name).info.run_id
        if known is None:
            mlflow.log_params(flat(experiment.model_dump(mode="json")))

    def log(self, values: Mapping[str, float], images_seen: int, stage: str) -> None:
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._mlflow.log_metrics(named, images_seen, run_id=self.id)  # run_id makes it work in all threads

    def finish(self, numbers: Mapping[str, float], failed: bool) -> None:
        self._mlflow.log_metrics(dict(numbers), 0, run_id=self.id)
        self._mlflow.end_run("FAILED" if failed else "FINISHED")
