"""From `data.source` to its shards. Sources are registered in `config.registry`."""

from npdraw_dist.config.registry import SOURCES, load
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.merged import MergedSource
from npdraw_dist.data.shards import Source


def open_source(data: DataConfig, seed: int) -> Source:
    """The data set that `data` names, its splits drawn with `seed`. Raises UserError if it is missing."""
    source: Source = load(SOURCES[data.source].code)(data, seed)
    return MergedSource(source, data)
