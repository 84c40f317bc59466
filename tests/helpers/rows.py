"""Rows of several shards as one."""

from collections.abc import Sequence

import numpy as np

from npdraw_dist.data.rows import Rows


def concat(rows: Sequence[Rows]) -> Rows:
    """One `Rows` of several (at least one). Labels are kept if all have them."""
    labels = [part.labels for part in rows if part.labels is not None]
    return Rows(
        [name for part in rows for name in part.ids],
        np.concatenate([part.images for part in rows]),
        np.concatenate(labels) if len(labels) == len(rows) else None,
        [reject for part in rows for reject in part.rejects],
    )
