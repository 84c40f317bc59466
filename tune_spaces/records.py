"""What came of each trial: one JSON file each in <run>/results/, the only memory of a sweep.

A trial with a record is not run again; one without, whatever the reason, is.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from npdraw_dist.config.load import nearest
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import list_files, read_bytes
from npdraw_dist.pipeline.store import Store

RESULTS = "results"
SCORE, IMAGES = "score", "images"  # as Tune sees them: less is better
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Metric:
    """A number that decides between trials, on validation images: less is better, in nats per image.

    While the stage trains, `sign` times the reported `key` stands for it.
    """

    stage: Literal["prior", "vae"]
    key: str
    sign: int


METRICS = {
    "valid_nll": Metric("vae", "valid/elbo", -1),
    "valid_prior_nll": Metric("prior", "valid/nll", 1),
}


def find_metric(name: str) -> Metric:
    """Raises UserError on any other name; test numbers do not decide."""
    if name not in METRICS:
        why = "; test numbers are reported, never chosen by" if name.startswith("test") else ""
        raise UserError(
            f"unknown --metric {name!r}{nearest(name, list(METRICS))} (known: {', '.join(METRICS)}{why})"
        )
    return METRICS[name]


@dataclass(frozen=True)
class Record:
    """A trial that finished, was stopped early by ASHA, or failed for a reason.

    point: where it lies in the space. settings: the swept settings. numbers: by column of the results.
    score: the last that Tune saw, None where it saw none.
    """

    trial: str
    status: Status
    point: dict[str, Any]
    settings: dict[str, Any]
    numbers: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    reason: str = ""

    @property
    def label(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.settings.items())


def write_record(run: Store, record: Record) -> None:
    """Writes the record, unless the trial has one: the first word on a trial stands."""
    if not run.has(RESULTS, f"{record.trial}.json"):
        run.write_json(asdict(record), RESULTS, f"{record.trial}.json")


def read_records(run: Store) -> list[Record]:
    """All records, by trial."""
    files = list_files(run.filesystem, run.path(RESULTS))
    found = [json.loads(read_bytes(run.filesystem, path)) for path, _ in files if path.endswith(".json")]
    return [Record(**item) for item in found]


def find_record(run: Store, trial: str) -> Record | None:
    name = f"{trial}.json"
    return Record(**run.read_json(RESULTS, name)) if run.has(RESULTS, name) else None


def forget_failed(run: Store) -> list[str]:
    """Removes the records of failed trials, so that they run again; returns their names."""
    failed = [record.trial for record in read_records(run) if record.status == "failed"]
    for trial in failed:
        run.filesystem.delete_file(run.path(RESULTS, f"{trial}.json"))
    return failed
