"""All stages of a run in order, and the table at its end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rich.table import Table

from npdraw_dist import __version__
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.made_by import version_of
from npdraw_dist.data.rejects import REJECTS
from npdraw_dist.data.sources import open_source
from npdraw_dist.pipeline import bank, parse, prior, sample, vae
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import FOLDERS, Store, finished
from npdraw_dist.training import checkpoint
from npdraw_dist.training.failures import storage_error

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


def all_done(experiment: Experiment, store: Store, stages: Sequence[str]) -> bool:
    """True if each of `stages` has its output for this config."""
    return all(_done(experiment, store, stage) for stage in stages)


def _done(experiment: Experiment, store: Store, stage: str) -> bool:
    made_from = of_stage(experiment, stage)
    if stage == "sample":
        return store.has("metrics.json") and store.read_json("metrics.json").get("fingerprint") == made_from
    if stage == "vae" and not store.has("model", "model.safetensors"):
        return False
    return finished(store, FOLDERS[stage], made_from) is not None


def other_versions(store: Store, stages: Sequence[str]) -> list[str]:
    """The other package versions that made what a run holds of `stages`; [] if none say so.

    Raises NewerFormat if one of them made what this version cannot read.
    """
    found: set[str | None] = set()
    for folder in [FOLDERS[stage] for stage in stages if stage in FOLDERS]:
        found.add(checkpoint.newest_version(store.filesystem, store.path(folder)))
        if store.has(folder, "manifest.json"):
            found.add(version_of(store.read_json(folder, "manifest.json"), store.shown(folder)))
    return sorted(version for version in found if version not in (None, __version__))


def check_data(experiment: Experiment) -> None:
    """Opens the data set, so that a wrong path is reported before anything is written."""
    open_source(experiment.data, experiment.seed)


def run_stages(
    experiment: Experiment, store: Store, stages: Sequence[str], fresh: bool
) -> dict[str, Manifest]:
    """Runs the stages in order; returns the manifest of each. Says if another version began the run.

    If a fresh run ends with a user's mistake before any stage has finished, its folder is removed, unless
    it holds the list of bad rows. Raises UserError if the storage failed; then nothing is removed.
    """
    manifests: dict[str, Manifest] = {}
    if others := other_versions(store, experiment.stage_names):
        console.print(f"{store.shown()}: made by {', '.join(others)}, resumed by {__version__}")
    try:
        for name, stage in STAGES.items():
            if name in stages:
                manifests[name] = stage.run(experiment, store)
    except UserError:
        first = FOLDERS[experiment.stage_names[0]]
        if fresh and not manifests and not store.has(first, REJECTS):
            store.remove()
        raise
    except Exception as error:
        if (cause := storage_error(error)) is None:
            raise
        raise UserError(
            f"stage {name} stopped because its storage failed ({cause}); what was saved is intact, and the "
            "same command resumes"
        ) from None
    return manifests


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
