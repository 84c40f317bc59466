"""Data must stay what they are while they are read."""

from collections.abc import Iterator
from contextlib import contextmanager

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.identity import Identity, compare
from npdraw_dist.data.sources import open_source


class DataChanged(UserError):
    """The data changed: what was read of them, and is not finished, is of no use."""


@contextmanager
def unchanged(data: DataConfig, seed: int, before: Identity, reader: str) -> Iterator[None]:
    """Raises DataChanged at the end of the block, also after a UserError, if the data are not as `before`.

    reader: who reads them inside the block, for the message.
    """
    try:
        yield
    except UserError:
        _require_same(data, seed, before, reader)
        raise
    _require_same(data, seed, before, reader)


def _require_same(data: DataConfig, seed: int, before: Identity, reader: str) -> None:
    try:
        changes = str(compare(before, open_source(data, seed)))
    except UserError as error:  # they are not even there
        changes = str(error)
    if changes:
        raise DataChanged(
            f"the data changed while {reader} read them: {changes}; nothing of what it read is kept: "
            "give the same command again once the data stay as they are"
        )
