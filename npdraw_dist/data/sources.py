"""From `data.source` to its shards. Sources are registered in `config.registry`."""

from npdraw_dist.config.registry import SOURCES, load
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.merged import MergedSource
from npdraw_dist.data.readers.folders import DOWNLOADS
from npdraw_dist.data.shards import Source


def open_source(data: DataConfig, seed: int, download: bool = True) -> Source:
    """The data set that `data` names, its splits drawn with `seed`. Raises UserError if it is missing.

    download: torchvision may download missing files of a known set.
    """
    before = DOWNLOADS.set(download)
    try:
        source: Source = load(SOURCES[data.source].code)(data, seed)
    finally:
        DOWNLOADS.reset(before)
    return MergedSource(source, data)
