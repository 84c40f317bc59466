"""`npdraw prepare` without its flags."""

from typing import Any

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.ingest import Format
from npdraw_dist.data.shards import open_source
from npdraw_dist.pipeline import data as stage


def prepare(data: DataConfig, seed: int, out: str, form: Format) -> dict[str, Any]:
    """Writes the source that `data` names, as the command does; returns the manifest."""
    source = open_source(data, seed)
    stage.require_out(data, source, out, form)
    return stage.prepare(data, seed, out, form, source, show=lambda images, rate: None)
