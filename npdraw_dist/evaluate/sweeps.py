"""The runs of comparisons that `tune_spaces.sweep --space comparison` made, and whether they may be compared.

A run whose test split was opened before is refused: a choice could have been made by it. The first start
records itself as the one opening in every run; the same comparison may go on after a kill, no other one.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from npdraw_dist.config.load import differences
from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, open_filesystem, read_bytes, write_text
from npdraw_dist.pipeline.store import openings, record_opening

PLAN, OPENED, RESULTS = "comparison.json", "opened.json", "results.parquet"
OPENED_BY = "evaluate --compare"


@dataclass(frozen=True)
class Entry:
    """A run that is measured. role: `seed`, of several, or `longest`, trained until it stopped improving.

    facts: what the sweep recorded of it: images, core_seconds, valid_nll, still_improving. leading: the first
    seed of its kind and fraction, of which curves and samples are shown.
    """

    folder: str
    kind: str
    fraction: float
    seed: int
    role: str
    facts: Mapping[str, Any]
    leading: bool = False

    @property
    def title(self) -> str:
        return KINDS[self.kind].title


@dataclass(frozen=True)
class Sweep:
    """A comparison's folder. runs: its trials and final runs, relative to it."""

    filesystem: FileSystem
    root: str
    plan: Mapping[str, Any]

    @property
    def shown(self) -> str:
        return display_path(self.filesystem, self.root)

    @property
    def fraction(self) -> float:
        return float(self.plan["fraction"])

    @property
    def runs(self) -> list[str]:
        return [*(f"trials/{name}" for name in self.plan["trials"]), *(f["run"] for f in self.plan["finals"])]

    def search(self) -> dict[str, list[float]]:
        """The NLL on validation images of each kind's trials, the best first, without those that failed.

        Raises UserError if the sweep has no results.parquet, which it writes last.
        """
        path = f"{self.root}/{RESULTS}"
        try:
            content = io.BytesIO(read_bytes(self.filesystem, path))
            rows = pq.read_table(content, columns=["trial", "valid_nll"]).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"--compare {self.shown}: {RESULTS} is unreadable ({error})") from None
        found: dict[str, list[float]] = {trial["kind"]: [] for trial in self.plan["trials"].values()}
        for row in rows:
            if row["valid_nll"] is not None:
                found[self.plan["trials"][row["trial"]]["kind"]].append(row["valid_nll"])
        return {kind: sorted(values) for kind, values in found.items()}

    def entries(self) -> list[Entry]:
        leading: set[str] = set()
        found = []
        for final in self.plan["finals"]:
            first = final["role"] == "seed" and final["kind"] not in leading
            leading |= {final["kind"]} if first else set()
            folder = f"{self.shown}/{final['run']}"
            head = (folder, final["kind"], self.fraction, int(final["seed"]), final["role"])
            found.append(Entry(*head, final, first))
        return found


def is_sweep(folder: str) -> bool:
    """Whether the folder is one of `sweep --space comparison`."""
    filesystem, path = open_filesystem(folder)
    return bool(filesystem.get_file_info(f"{path}/{PLAN}").type == FileType.File)


def read_sweep(folder: str) -> Sweep:
    """Raises UserError if the comparison has not finished, or gave kinds an unequal chance."""
    filesystem, path = open_filesystem(folder)
    try:
        plan = json.loads(read_bytes(filesystem, f"{path}/{PLAN}"))
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {folder}: {PLAN} is unreadable ({error})") from None
    if "finals" not in plan:
        raise UserError(f"--compare {folder} has not finished; the same sweep command goes on with it")
    require_equal_chance(folder, plan)
    return Sweep(filesystem, path, plan)


def require_equal_chance(folder: str, plan: Mapping[str, Any]) -> None:
    """Raises UserError unless each kind had the same number of trials and of final runs."""
    trials = Counter(trial["kind"] for trial in plan["trials"].values())
    if len(set(trials.values())) > 1:
        raise UserError(f"--compare {folder}: kinds had different numbers of trials, {dict(trials)}")
    seeds = Counter(final["kind"] for final in plan["finals"] if final["role"] == "seed")
    wanted = dict.fromkeys(trials, plan["seeds"])
    if dict(seeds) != wanted:
        raise UserError(
            f"--compare {folder}: of {plan['seeds']} seeds each, there are {dict(seeds)}; train the others "
            "(the same sweep command with --retry-failed)"
        )


def open_test_split(sweeps: Sequence[Sweep], protocol: Mapping[str, Any]) -> None:
    """Records the opening in every run of the sweeps, before a test image is read.

    Raises UserError if a run saw its test split before, in training or by another protocol.
    """
    protocol = json.loads(json.dumps(protocol))
    for sweep in sweeps:
        known = _opened(sweep)
        if known is not None and (changed := differences(known, protocol)):
            raise UserError(
                f"--compare {sweep.shown}: its test split was opened by another protocol "
                f"({'; '.join(changed)}); repeat that one"
            )
        for run in sweep.runs:
            _require_closed(sweep, run, begun=known is not None)
    for sweep in sweeps:
        if _opened(sweep) is None:
            write_text(sweep.filesystem, f"{sweep.root}/{OPENED}", json.dumps(protocol, indent=2) + "\n")
        for run in sweep.runs:
            root = f"{sweep.root}/{run}"
            if openings(sweep.filesystem, root) == []:
                record_opening(sweep.filesystem, root, OPENED_BY)


def _opened(sweep: Sweep) -> dict[str, Any] | None:
    """The protocol by which this comparison opened the test split; None if it is closed."""
    path = f"{sweep.root}/{OPENED}"
    if sweep.filesystem.get_file_info(path).type != FileType.File:
        return None
    return dict(json.loads(read_bytes(sweep.filesystem, path)))


def _require_closed(sweep: Sweep, run: str, begun: bool) -> None:
    """begun: this comparison opened it at an earlier start, once."""
    if sweep.filesystem.get_file_info(f"{sweep.root}/{run}").type == FileType.NotFound:
        return  # a trial that failed before it began
    found = openings(sweep.filesystem, f"{sweep.root}/{run}")
    if found is None:
        raise UserError(f"--compare {sweep.shown}/{run} does not say whether its test split was ever opened")
    if found and not (begun and [opening["by"] for opening in found] == [OPENED_BY]):
        by = next((o for o in found if o["by"] != OPENED_BY), found[-1])
        raise UserError(
            f"--compare {sweep.shown}/{run}: its test split was seen before, by {by['by']} on {by['when']}; "
            "a run that saw it cannot be compared"
        )
