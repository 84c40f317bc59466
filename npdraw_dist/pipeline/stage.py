"""What every stage of a run answers: its needs, whether it is done, how it runs, its line, its pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.store import Store

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """needs: the stages whose output it reads, as far as the model's kind has them. done: its manifest once
    it has finished, else None; raises UserError if it is of another config. run: does what is missing and
    returns the manifest. describe: its numbers in the table at the end of a run. pictures: in the run folder.
    """

    name: str
    needs: tuple[str, ...]
    done: Callable[[Experiment, Store], Manifest | None]
    run: Callable[[Experiment, Store], Manifest]
    describe: Callable[[Mapping[str, Any]], str]
    pictures: tuple[str, ...] = ()
