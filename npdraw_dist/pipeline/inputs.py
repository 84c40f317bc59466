"""What data a run was made from: recorded once in <run>/inputs.parquet, compared at each later start."""

from npdraw_dist.data import identity
from npdraw_dist.data.identity import Identity
from npdraw_dist.pipeline.store import Store

INPUTS = "inputs.parquet"


def read_digest(store: Store) -> str | None:
    """The digest of the run's data, hexadecimal; None if it was never recorded (runs of old versions)."""
    return identity.load_digest(store.filesystem, store.path(INPUTS)) if store.has(INPUTS) else None


def read_inputs(store: Store) -> Identity | None:
    """The recorded files; None if they were never recorded."""
    return identity.load(store.filesystem, store.path(INPUTS)) if store.has(INPUTS) else None


def write_inputs(store: Store, found: Identity) -> None:
    identity.save(found, store.filesystem, store.path(INPUTS))
