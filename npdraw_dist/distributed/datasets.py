"""Writes a Ray Dataset of a caller, on its cluster."""

from collections.abc import Callable, Mapping
from typing import Any

from pyarrow import fs
from ray.data import Dataset, SaveMode
from ray.data.datasource import FilenameProvider

PART = "part-"  # begins the names of the files


class _InOrder(FilenameProvider):
    """Ray's own names are random; but ids and splits follow from the names."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"{PART}{task_index:05d}.parquet"


def write_dataset(
    dataset: Dataset,
    encode: Callable[[Mapping[str, Any]], dict[str, Any]],
    filesystem: fs.FileSystem,
    folder: str,
) -> None:
    """Writes the rows as Parquet files, in their order. encode: what is written of a row."""
    encoded = dataset.map(encode)
    options = encoded.context.execution_options  # also those of the user's dataset
    before, options.preserve_order = options.preserve_order, True
    try:
        names = _InOrder()
        encoded.write_parquet(folder, filesystem=filesystem, filename_provider=names, mode=SaveMode.OVERWRITE)
    finally:
        options.preserve_order = before
