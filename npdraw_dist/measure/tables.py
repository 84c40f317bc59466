"""Writes tables as Markdown and as Parquet."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, which omits empty columns; [] if there are no rows."""
    if not rows:
        return []
    cells = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in zip(*cells, strict=True)]
    lines.insert(1, "|---|" + "---:|" * (len(cells) - 1))
    return lines


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of a Parquet file with `rows`."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def percent(fraction: float) -> str:
    """Formats a fraction as percent, such as 0.05 as `5%`."""
    return f"{100 * fraction:g}%"
