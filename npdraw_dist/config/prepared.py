"""Sizes of a prepared data set, so that nobody has to repeat what its manifest states."""

from collections.abc import Mapping
from typing import Any

from npdraw_dist.config.registry import SOURCES
from npdraw_dist.core.errors import UserError

SIZES = ("channels", "image_size")


def with_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings; those of `data` with sizes from the manifest in data.path where they are not given.

    A size that is given stays: the source refuses it where it opens the data. Raises UserError if data.path
    cannot be read.
    """
    data = values.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("path"), str):
        return dict(values)
    source = SOURCES.get(str(data.get("source")))
    if source is None or not source.prepared or all(data.get(name) is not None for name in SIZES):
        return dict(values)

    # pyarrow takes a moment to import, and few commands come here.
    from npdraw_dist.core.prepared import read_prepared
    from npdraw_dist.core.storage import open_filesystem

    try:
        found = read_prepared(*open_filesystem(data["path"]))
    except OSError as error:
        raise UserError(f"cannot read data.path {data['path']}: {error}") from None
    if found is None:
        return dict(values)
    stated = dict(zip(SIZES, found.shape, strict=False))
    given = {name: data[name] for name in SIZES if data.get(name) is not None}
    return {**values, "data": {**data, **stated, **given}}
