"""The rows that a stage skipped: rejects.jsonl, and the ids that came in two shards of the parses."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from npdraw_dist.core.storage import write_beside, write_text
from npdraw_dist.data.ids import repeated_ids
from npdraw_dist.data.parses import ROW_GROUP, to_batch
from npdraw_dist.data.rows import Reject
from npdraw_dist.pipeline.store import Store

REJECTS = "rejects.jsonl"
Listed = dict[str, str]


def listed(rejects: Sequence[Reject], shard: str) -> list[Listed]:
    """The rejects of a shard as they stand in rejects.jsonl."""
    return [{"id": reject.id, "reason": reject.reason, "shard": shard} for reject in rejects]


def write_rejects(store: Store, folder: str, rejects: Sequence[Listed]) -> None:
    """Writes rejects.jsonl of a stage, a line each by shard, where there are any."""
    if rejects or store.has(folder, REJECTS):  # of a run that failed
        lines = [json.dumps(reject) + "\n" for reject in sorted(rejects, key=lambda reject: reject["shard"])]
        write_text(store.filesystem, store.path(folder, REJECTS), "".join(lines))


def duplicates(store: Store, folder: str, shards: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """shard -> ids that an earlier one of its split has: of the facts of parsed `shards`, in their order."""
    paths = {facts["shard"]: _path(store, folder, facts) for facts in shards if facts["images"]}

    def read(shard: str) -> list[str]:
        table = pq.read_table(paths[shard], filesystem=store.filesystem, columns=["id"])
        return list(table["id"].to_pylist())

    found: dict[str, set[str]] = {}
    for split in dict.fromkeys(facts["split"] for facts in shards):
        order = [f["shard"] for f in shards if f["split"] == split and f["shard"] in paths]
        found |= repeated_ids(order, read)
    return found


def drop(store: Store, folder: str, facts: dict[str, Any], ids: set[str]) -> dict[str, Any]:
    """Takes the rows `ids` out of a shard of parses; returns its facts then."""
    path = _path(store, folder, facts)
    table = pq.read_table(path, filesystem=store.filesystem)
    again = np.array([name in ids for name in table["id"].to_pylist()])
    kept = table.filter(pa.array(~again))
    if len(kept):
        write_beside(
            store.filesystem,
            path,
            lambda stream: pq.write_table(kept, stream, row_group_size=ROW_GROUP, compression="zstd"),
        )
    else:
        store.filesystem.delete_file(path)
    sums: dict[str, float] = {}
    if "squared_error" in kept.column_names:
        sums["squared_error"] = float(kept["squared_error"].to_numpy().sum(dtype=np.float64))
        sums["parts"] = int(to_batch(kept).whether.sum())
    rejects = [{"id": name, "reason": "duplicate id"} for name in table["id"].to_pylist() if name in ids]
    return {
        **facts,
        "images": len(kept),
        **sums,
        "rejects": [*facts["rejects"], *rejects],
    }


def _path(store: Store, folder: str, facts: dict[str, Any]) -> str:
    return store.path(folder, facts["split"], f"{facts['shard']}.parquet")
