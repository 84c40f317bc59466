"""Writes a caller's Ray Dataset to Parquet files, on the caller's cluster."""

from collections.abc import Callable, Mapping
from typing import Any

from pyarrow import fs
from ray.data import Dataset, SaveMode
from ray.data.datasource import FilenameProvider

PART = "part-"  # prefix of the file names


class _InOrder(FilenameProvider):
    """Numbers the files. Ray's own names are random, and image ids and splits depend on file names."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"{PART}{task_index:05d}.parquet"


def write_dataset(
    dataset: Dataset,
    encode: Callable[[Mapping[str, Any]], dict[str, Any]],
    filesystem: fs.FileSystem,
    folder: str,
) -> None:
    """Writes `encode(row)` of each row to Parquet files, in the order of the rows."""
    encoded = dataset.map(encode)
    options = encoded.context.execution_options  # the user's dataset shares this object
    before, options.preserve_order = options.preserve_order, True
    try:
        names = _InOrder()
        encoded.write_parquet(folder, filesystem=filesystem, filename_provider=names, mode=SaveMode.OVERWRITE)
    finally:
        options.preserve_order = before
