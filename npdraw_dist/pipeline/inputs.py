"""What data a run was made from: recorded once in <run>/inputs.parquet, compared at each later start."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from npdraw_dist.config.load import DATA_PATH, other_settings, settle
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.data import identity
from npdraw_dist.data.identity import Identity, compare, identify
from npdraw_dist.data.shard_writer import DONE, MARKER
from npdraw_dist.data.shards import DataChanged, Source, open_source, unchanged
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, INPUTS, Store

READ_DATA = ("bank", "parse")  # the stages that read the data; later ones read parses


def read_digest(store: Store) -> str | None:
    """The digest of the run's data, hexadecimal; None if they are not recorded."""
    if not store.has(INPUTS):
        return None
    return identity.load_metadata(store.filesystem, store.path(INPUTS))["digest"]


def read_inputs(store: Store) -> Identity | None:
    """The recorded files; None before the first start, and after `forget`."""
    return identity.load(store.filesystem, store.path(INPUTS)) if store.has(INPUTS) else None


def claim(asked: Experiment, store: Store, needed: bool | None = None) -> tuple[Experiment, bool]:
    """Takes the run folder for a config: the config that names its stages, and whether the run is new.

    The first is `asked`, but for settings that a resume may change: it has the run's own, and `store.asked`
    what is done instead. The data of a new run are recorded. needed: whether a later start has to find them;
    if not given, unless the stages that read them have finished. Raises UserError that names the settings
    that differ, or the files of the data.
    """
    if not store.has(CONFIG):
        source = open_source(asked.data, asked.seed)  # a wrong path is reported before anything is written
        fresh = store.claim(asked)
        _write(store, asked, identify(source.inputs))
        return asked, fresh
    run = store.config()
    others = [change for change in other_settings(run, asked) if not change.startswith(f"{DATA_PATH}:")]
    recorded = read_inputs(store)
    same_data = not others and recorded is not None and _holds_data(run, asked, store, recorded, needed)
    store.claim(asked, same_data)
    own, store.asked = settle(run, asked)
    return own, False


def _holds_data(
    run: Experiment, asked: Experiment, store: Store, recorded: Identity, needed: bool | None
) -> bool:
    """Whether data.path of `asked` holds the recorded data; if so, their times and place are recorded anew.

    False where the data are gone and not needed. Raises UserError if the data are others.
    """
    if needed is None:
        readers = [FOLDERS[stage] for stage in READ_DATA if stage in asked.stage_names]
        needed = not all(store.has(folder, "manifest.json") for folder in readers)
    needed = needed or run.data.path != asked.data.path
    try:  # a set that nobody will read is not downloaded again
        source = open_source(asked.data, asked.seed, download=needed)
    except UserError:
        if needed:
            raise
        return False
    found = compare(recorded, source.inputs)
    if found.changes and found.identity.root != recorded.root:
        raise UserError(
            f"{DATA_PATH} {asked.data.path} holds other data than those of run {store.shown()} "
            f"({recorded.root}): {found}; take another --name, or give the path of its data"
        )
    if found.changes:
        drop_unfinished_parses(store)
        raise DataChanged(
            f"the data of run {store.shown()} changed: {found}; take another --name, or put the data back"
        )
    if replace(found.identity, setting=asked.data.path) != recorded:
        _write(store, asked, found.identity)
    return True


def drop_unfinished_parses(store: Store) -> None:
    """Forgets the shards of a stage `parse` that was killed: some may be of the data that were changed."""
    folder = FOLDERS["parse"]
    if not store.has(folder, "manifest.json") and store.has(folder, DONE, MARKER):
        store.filesystem.delete_file(store.path(folder, DONE, MARKER))


def folders(store: Store, stages: Sequence[str]) -> list[Landmarks]:
    """What every node has to see for `stages`: the run folder and the data, as far as they are local."""
    recorded = read_inputs(store) if set(stages) & set(READ_DATA) else None
    data = None if recorded is None else recorded.landmarks()
    return store.landmarks() + ([] if data is None else [data])


def source_of(experiment: Experiment, store: Store) -> Source:
    """The data of the run, where they are now. Raises UserError if they are not there."""
    asked = store.as_asked(experiment)
    return open_source(asked.data, asked.seed)


def forget(store: Store) -> None:
    """Drops the record of a run that holds nothing made from its data, so that they may be mended."""
    if store.has(INPUTS):
        store.filesystem.delete_file(store.path(INPUTS))


def _write(store: Store, asked: Experiment, found: Identity) -> None:
    """Also where a record is: with the places and times of now."""
    identity.save(replace(found, setting=asked.data.path), store.filesystem, store.path(INPUTS))


@contextmanager
def reading(experiment: Experiment, store: Store, stage: str) -> Iterator[tuple[Source, str]]:
    """The data of the run, and their digest, for a stage that reads them inside the block.

    Raises DataChanged if they are not those of the record at the end of it, also after a UserError.
    """
    source, asked = source_of(experiment, store), store.as_asked(experiment)
    recorded = read_inputs(store)
    if recorded is None:
        recorded = identify(source.inputs)
        _write(store, asked, recorded)
    with unchanged(asked.data, asked.seed, recorded, f"the stage {stage}"):
        yield source, recorded.digest
