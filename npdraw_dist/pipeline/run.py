"""All stages of a run in order, and the table at its end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rich.table import Table

from npdraw_dist import __version__
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import StorageFailed, UserError
from npdraw_dist.core.lease import Lease
from npdraw_dist.core.made_by import version_of
from npdraw_dist.data.rejects import REJECTS
from npdraw_dist.data.shard_writer import DONE
from npdraw_dist.pipeline import bank, inputs, parse, prior, sample, vae
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.store import FOLDERS, Store
from npdraw_dist.training import checkpoint

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
    except StorageFailed:
        raise
    except UserError:
        held.check()  # else the folder is another driver's
        worth = ("manifest.json", DONE, REJECTS)
        if not any(store.has(folder, name) for folder in FOLDERS.values() for name in worth):
            store.remove()
        raise


def other_versions(store: Store, stages: Sequence[str]) -> list[str]:
    """The other package versions that made what a run holds of `stages`; [] if none say so.

    Raises OtherFormat if one of them made what this version cannot read.
    """
    found: set[str | None] = set()
    for folder in [FOLDERS[stage] for stage in stages if stage in FOLDERS]:
        found.add(checkpoint.newest_version(store.filesystem, store.path(folder)))
        if store.has(folder, "manifest.json"):
            found.add(version_of(store.read_json(folder, "manifest.json"), store.shown(folder)))
    return sorted(version for version in found if version not in (None, __version__))


def run_stages(
    experiment: Experiment, store: Store, stages: Sequence[str], held: Lease
) -> dict[str, Manifest]:
    """Runs the stages in order; returns the manifest of each. Says if another version began the run.

    held: the lease on the run. As long as no stage has finished, a user's mistake lets the data be mended.
    Raises LeaseLost if another driver took the run over, StorageFailed if the storage failed.
    """
    manifests: dict[str, Manifest] = {}
    if others := other_versions(store, experiment.stage_names):
        console.print(f"{store.shown()}: made by {', '.join(others)}, resumed by {__version__}")
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
    except Exception as error:
        from npdraw_dist.training.failures import storage_failed  # it imports Ray

        if (failed := storage_failed(name, error)) is None:
            raise
        raise failed from None


def report(store: Store, manifests: Mapping[str, Manifest], list_pictures: bool = True) -> None:
    """Prints the table (stage, seconds, images/s, numbers), then the paths of the pictures if asked."""
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
    printed.print(table)
    for picture in (picture for stage in STAGES.values() for picture in stage.pictures):
        if list_pictures and store.has(*picture.split("/")):
            printed.print(store.shown(*picture.split("/")))
