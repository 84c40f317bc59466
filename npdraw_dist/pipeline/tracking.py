"""A run in Weights & Biases or MLflow (`--track`): losses as they come, settings, final numbers.

The driver alone talks to the service. Address, project and password are those of its own environment
variables (WANDB_MODE, WANDB_PROJECT ...; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME ...). The name of the
run there is kept in tracking.json, so a resumed run goes on there.
"""

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import Store

KNOWN = "tracking.json"
PROJECT = "npdraw_dist"
BATCH = 100  # settings of one request to MLflow


def require_tracker(name: str | None) -> None:
    """Raises UserError if the package of a service is not installed."""
    if name is not None and find_spec(name) is None:
        raise UserError(
            f"--track {name} needs the package {name}: pip install 'npdraw_dist[{name}]', or leave it out"
        )


@contextlib.contextmanager
def tracked(experiment: Experiment, store: Store, name: str | None) -> Iterator[None]:
    """Inside the block, rows given to `store.tracked` go to a service; one that fails is reported once.

    Raises UserError if the service refuses.
    """
    if name is None:
        yield
        return
    require_tracker(name)
    try:
        tracker = _Wandb(experiment, store) if name == "wandb" else _Mlflow(experiment, store)
    except Exception as error:  # these packages do not document which
        raise UserError(f"--track {name} cannot start: {_line(error)}") from None
    alive = True

    def send(request: Callable[[], None]) -> None:
        """The run goes on without a service that fails."""
        nonlocal alive
        try:
            if alive:
                request()
        except Exception as error:
            alive = False
            console.print(f"tracking ends: {_line(error)}", markup=False)

    def log(row: Mapping[str, float], stage: str) -> None:
        values = {name: value for name, value in row.items() if name not in ("images_seen", "step")}
        send(lambda: tracker.log(values, int(row["images_seen"]), stage))

    store.tracked, failed = log, True
    try:
        yield
        failed = False
    finally:
        # Without truth values and texts, such as fingerprints.
        kept = {key: value for key, value in store.metrics().items() if type(value) in (int, float)}
        send(lambda: tracker.finish({key: float(value) for key, value in kept.items()}, failed))
        store.tracked = None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _known(store: Store, service: str, new: str | None = None) -> str | None:
    """The run's name in a service; None if it has none, unless `new` gives it one."""
    found = store.read_json(KNOWN) if store.has(KNOWN) else {}
    if service not in found and new is not None:
        store.write_json({**found, service: new}, KNOWN)
        return new
    name = found.get(service)
    return None if name is None else str(name)


def _name(store: Store) -> str:
    return store.root.rpartition("/")[2]


class _Wandb:
    def __init__(self, experiment: Experiment, store: Store) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_name(store),
            id=_known(store, "wandb", uuid.uuid4().hex[:12]),
            resume="allow",
            config=flat(experiment.model_dump(mode="json")),
            dir=store.root if store.is_local else tempfile.gettempdir(),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        # Stages count their own images, so each has an axis of its own.
        for stage in experiment.stage_names:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/images_seen")

    def log(self, values: Mapping[str, float], images_seen: int, stage: str) -> None:
        """Numbers of a stage by name (`valid/nll`) after so many images of it. They can come twice."""
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({**named, f"{stage}/images_seen": images_seen})

    def finish(self, numbers: Mapping[str, float], failed: bool) -> None:
        """The end of the command. numbers: of metrics.json; {} before the stage `sample` is done."""
        self._run.summary.update(dict(numbers))
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, experiment: Experiment, store: Store) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        known = _known(store, "mlflow")
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        group = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if group is None else group.experiment_id
        self._run = self._client.create_run(number, run_name=_name(store)).info.run_id
        _known(store, "mlflow", self._run)
        values = flat(experiment.model_dump(mode="json"))
        settings = [Param(key, str(value)) for key, value in values.items()]
        for start in range(0, len(settings), BATCH):
            self._client.log_batch(self._run, params=settings[start : start + BATCH])

    def log(self, values: Mapping[str, float], images_seen: int, stage: str) -> None:
        self._send({f"{stage}/{name}": value for name, value in values.items()}, images_seen)

    def finish(self, numbers: Mapping[str, Any], failed: bool) -> None:
        self._send(numbers, 0)
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _send(self, values: Mapping[str, float], images_seen: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, images_seen) for name, value in values.items()]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)
