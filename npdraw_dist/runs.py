"""npdraw runs: lists the runs of a storage, with their state, time and numbers."""

from collections.abc import Sequence

from pydantic import Field

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate


class Runs(Command):
    """Lists the runs in a folder or at a URI, the last written run first.

    A run is finished, running, stopped (its command ended before the last stage) or interrupted (its process
    was killed). The same command again resumes a run that is stopped or interrupted. The list shows the
    finished stages, their seconds, and the numbers of the model.
    """

    examples = ("", "--storage s3://bucket/runs")

    storage: str = Field("runs", description="folder or URI that holds the run folders")


def main(argv: Sequence[str]) -> None:
    command: Runs = validate(Runs, parse_flags(Runs, "npdraw_dist.runs", argv))

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.run_list import HEAD, rows_of

    rows = rows_of(command.storage)
    if not rows:
        print(f"no run in {command.storage}; `npdraw train` and `npdraw fit` make one")
        return
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (HEAD, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run_command(main)
