"""All stages of a run in order, and the table at its end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rich.table import Table

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import Lease
from npdraw_dist.data.rejects import REJECTS
from npdraw_dist.data.shard_writer import DONE
from npdraw_dist.pipeline import bank, inputs, parse, prior, sample, vae
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import FOLDERS, Store

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A stage: what runs it, the line of its numbers, and the pictures that it writes in the run folder."""

    run: Callable[[Experiment, Store], Manifest]
    describe: Callable[[Mapping[str, Any]], str]
    pictures: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: ModuleType) -> "Stage":
        return cls(module.run, module.describe, getattr(module, "PICTURES", ()))


STAGES = {module.STAGE: Stage.of(module) for module in (bank, parse, prior, vae, sample)}


@contextmanager
def removed_if_refused(store: Store, held: Lease) -> Iterator[None]:
    """Removes a new run's folder if the block ends with a user's mistake and nothing of worth is in it.

    Of worth are a finished stage, parsed shards, at which the same command goes on, and the list of bad rows.
    held: the lease on the run. Raises LeaseLost if another driver took the run over.
    """
    try:
        yield
    except UserError:
        held.check()  # else the folder is another driver's
        worth = ("manifest.json", DONE, REJECTS)
        if not any(store.has(folder, name) for folder in FOLDERS.values() for name in worth):
            store.remove()
        raise


def run_stages(
    experiment: Experiment, store: Store, stages: Sequence[str], held: Lease
) -> dict[str, Manifest]:
    """Runs the stages in order; returns the manifest of each. held: the lease on the run.

    As long as no stage has finished, a user's mistake lets the data be mended. Raises LeaseLost if another
    driver took the run over.
    """
    manifests: dict[str, Manifest] = {}
    try:
        for name in (name for name in STAGES if name in stages):
            held.check()
            manifests[name] = STAGES[name].run(experiment, store)
        return manifests
    except UserError:
        held.check()
        if not store.has(FOLDERS[experiment.stage_names[0]], "manifest.json"):
            inputs.forget(store)
        raise


def report(store: Store, manifests: Mapping[str, Manifest]) -> None:
    """Prints the table (stage, seconds, images/s, numbers), then the paths of the pictures."""
    table = Table()
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("images/s", justify="right")
    table.add_column("numbers")
    for name, manifest in manifests.items():
        seconds, rate = (
            manifest.get(key, manifest.get(f"{name}/{key}", 0.0)) for key in ("seconds", "images_per_s")
        )
        table.add_row(name, f"{seconds:.1f}", f"{rate:,.0f}", STAGES[name].describe(manifest))
    console.print(table)
    for picture in (picture for stage in STAGES.values() for picture in stage.pictures):
        if store.has(*picture.split("/")):
            console.print(store.shown(*picture.split("/")))
