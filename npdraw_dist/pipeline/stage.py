"""Defines what every stage of a run provides, and `Watch`, which passes on the metrics of training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.store import Store

Manifest = dict[str, Any]
Watcher = Callable[[Mapping[str, float], str], None]  # called with a row of metrics and the name of its stage


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    needs: the stages whose output this stage reads, if the model's kind has them. done: returns the manifest,
    or None if the stage has not finished; raises UserError if another config made the output. run: makes the
    missing output and returns the manifest. describe: formats the numbers for the table at the end of a run.
    pictures: the files of its pictures in the run folder.
    """

    name: str
    needs: tuple[str, ...]
    done: Callable[[Experiment, Store], Manifest | None]
    run: Callable[..., Manifest]
    describe: Callable[[Mapping[str, Any]], str]
    pictures: tuple[str, ...] = ()


class Watch:
    """Passes each row of metrics to all watchers.

    ray_callbacks: callbacks that Ray Train calls on each report. failed: the error that a watcher raised.
    """

    def __init__(self, watchers: Sequence[Watcher] = (), ray_callbacks: Sequence[Any] = ()) -> None:
        self.watchers, self.ray_callbacks = watchers, ray_callbacks
        self.failed: Exception | None = None

    def __call__(self, row: Mapping[str, float], stage: str) -> None:
        try:
            for watch in self.watchers:
                watch(row, stage)
        except Exception as error:
            self.failed = error
            raise
