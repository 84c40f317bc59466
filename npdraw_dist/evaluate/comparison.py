"""`evaluate --compare` of sweeps of `--space comparison`: opens their test split once, measures, reports.

A run whose test split was opened before is refused: a choice could have been made by it. The first start
records itself as the one opening in every run; the same comparison may go on after a kill, no other one.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from npdraw_dist.config.load import differences
from npdraw_dist.config.spec import Spec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, is_file, open_filesystem, read_bytes, write_text
from npdraw_dist.data.tasks import map_items
from npdraw_dist.evaluate.measured import CURVE_IMAGES, KS, Entry, measure, read, references
from npdraw_dist.evaluate.protocol import made_by
from npdraw_dist.evaluate.report import Comparison, write_report
from npdraw_dist.evaluate.settings import PLAN, EvaluationSettings
from npdraw_dist.measure.distances import require_enough
from npdraw_dist.measure.features import ExtractorFile, find_extractor
from npdraw_dist.pipeline.models import read_spec
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.launch import start_ray

OPENED, REFERENCES, RESULTS = "opened.json", "references.json", "results.parquet"
OPENED_BY = "evaluate --compare"
LEAST_FEATURES = 64


@dataclass(frozen=True)
class Sweep:
    """A comparison's folder. plan: its trials, final runs and winners."""

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
        """Trials and final runs, relative to the folder."""
        return [*(f"trials/{name}" for name in self.plan["trials"]), *(f["run"] for f in self.plan["finals"])]

    def search(self) -> dict[str, list[float]]:
        """The NLL on validation images of each kind's trials, the best first, without those that failed.

        Raises UserError if the sweep has no results.parquet, which it writes last.
        """
        try:
            content = io.BytesIO(read_bytes(self.filesystem, f"{self.root}/{RESULTS}"))
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
            kind, role = final["kind"], final["role"]
            first = role == "seed" and kind not in leading
            leading |= {kind} if first else set()
            folder = f"{self.shown}/{final['run']}"
            found.append(Entry(folder, kind, self.fraction, int(final["seed"]), role, final, first))
        return found

    def known(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder; None if it is missing."""
        path = f"{self.root}/{name}"
        if not is_file(self.filesystem, path):
            return None
        return dict(json.loads(read_bytes(self.filesystem, path)))

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        write_text(self.filesystem, f"{self.root}/{name}", json.dumps(values, indent=2) + "\n")


def read_sweep(folder: str) -> Sweep:
    """Raises UserError if the comparison has not finished, or gave kinds an unequal chance."""
    filesystem, root = open_filesystem(folder)
    try:
        plan = json.loads(read_bytes(filesystem, f"{root}/{PLAN}"))
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {folder}: {PLAN} is unreadable ({error})") from None
    if "finals" not in plan:
        raise UserError(f"--compare {folder} has not finished; the same sweep command goes on with it")
    trials = Counter(trial["kind"] for trial in plan["trials"].values())
    if len(set(trials.values())) > 1:
        raise UserError(f"--compare {folder}: kinds had different numbers of trials, {dict(trials)}")
    seeds = Counter(final["kind"] for final in plan["finals"] if final["role"] == "seed")
    if seeds != dict.fromkeys(trials, plan["seeds"]):
        raise UserError(
            f"--compare {folder}: of {plan['seeds']} seeds each, there are {dict(seeds)}; train the others "
            "(the same sweep command with --retry-failed)"
        )
    return Sweep(filesystem, root, plan)


def open_test_split(sweeps: Sequence[Sweep], protocol: Mapping[str, Any]) -> None:
    """Records the opening in every run of the sweeps, before a test image is read.

    Raises UserError if a run saw its test split before, in training or by another protocol.
    """
    protocol = json.loads(json.dumps(protocol))
    for sweep in sweeps:
        known = sweep.known(OPENED)
        if known is not None and (changed := differences(known, protocol)):
            raise UserError(
                f"--compare {sweep.shown}: its test split was opened by another protocol "
                f"({'; '.join(changed)}); repeat that one"
            )
        for run in sweep.runs:
            _require_closed(sweep, run, begun=known is not None)
    for sweep in sweeps:
        sweep.write(OPENED, protocol)
        for run in sweep.runs:
            store = Store(sweep.filesystem, f"{sweep.root}/{run}")
            if store.openings() == []:
                store.record_opening(OPENED_BY)


def _require_closed(sweep: Sweep, run: str, begun: bool) -> None:
    """begun: this comparison opened it at an earlier start, once."""
    if sweep.filesystem.get_file_info(f"{sweep.root}/{run}").type == FileType.NotFound:
        return  # a trial that failed before it began
    found = Store(sweep.filesystem, f"{sweep.root}/{run}").openings()
    if found is None:
        raise UserError(f"--compare {sweep.shown}/{run} does not say whether its test split was ever opened")
    if found and not (begun and [opening["by"] for opening in found] == [OPENED_BY]):
        by = next((o for o in found if o["by"] != OPENED_BY), found[-1])
        raise UserError(
            f"--compare {sweep.shown}/{run}: its test split was seen before, by {by['by']} on {by['when']}; "
            "a run that saw it cannot be compared"
        )


def compare_sweeps(folders: Sequence[str], settings: EvaluationSettings, served: int, out: str) -> list[str]:
    """Measures what is missing and writes the report; returns the paths of its files.

    settings: k, samples, extractor, seed and scale count. served: test images that served for choices.
    Raises UserError.
    """
    sweeps = [read_sweep(folder) for folder in folders]
    search = {sweep.fraction: sweep.search() for sweep in sweeps}
    entries = [entry for sweep in sweeps for entry in sweep.entries()]
    specs = [read_spec(f"{sweep.entries()[0].folder}/model") for sweep in sweeps]
    require_one_of_each(sweeps, specs)
    binarize = specs[0].binarize
    extractor = find_extractor(*settings.extractor_flags, specs[0].image_shape)
    if extractor is not None:
        assert extractor.dimensions is not None
        if extractor.dimensions < LEAST_FEATURES:
            raise UserError(
                f"the extractor has {extractor.dimensions} features; a comparison takes {LEAST_FEATURES} or "
                "more (npdraw extractor --features 64)"
            )
        require_enough(settings.samples or 0, settings.samples or 0, extractor.dimensions)
    protocol = protocol_of(settings, extractor, served, binarize)
    open_test_split(sweeps, protocol)
    work = partial(measure, settings=settings, extractor=extractor)
    if not settings.scale.here:
        start_ray(settings.scale)
    done = map(work, entries) if settings.scale.here else map_items(entries, work)
    for number, folder in enumerate(done, start=1):
        if isinstance(folder, UserError):
            raise folder
        console.print(f"{number}/{len(entries)} {folder} is measured", markup=False)
    beside: Mapping[str, Any] = {}
    if extractor is not None:  # floor and ceiling of the distances, computed once
        if sweeps[0].known(REFERENCES) is None:
            sweeps[0].write(REFERENCES, references(entries[0], settings, extractor, binarize))
        beside = sweeps[0].known(REFERENCES) or {}
    facts = {**protocol, "chance_of_each_kind": _chance(sweeps), "made_by": made_by()}
    return write_report(Comparison([read(entry) for entry in entries], search, beside, facts, served), out)


def require_one_of_each(sweeps: Sequence[Sweep], specs: Sequence[Spec]) -> None:
    """specs: of a model of each sweep. Raises UserError if two sweeps have one fraction, or other data."""
    fractions = [sweep.fraction for sweep in sweeps]
    if len(set(fractions)) < len(fractions):
        raise UserError(f"--compare: two sweeps have the same fraction ({', '.join(map(str, fractions))})")
    data = [spec.data and (spec.data.source, spec.data.inputs) for spec in specs]
    other = [sweep.shown for sweep, found in zip(sweeps, data, strict=True) if found != data[0]]
    if other:
        raise UserError(
            f"--compare: {other[0]} has other data than {sweeps[0].shown}; give each its own report"
        )


def protocol_of(
    settings: EvaluationSettings, extractor: ExtractorFile | None, served: int, binarize: str
) -> dict[str, Any]:
    """What decides the numbers: another one may not open the test split again."""
    pixels = "" if binarize == "none" else "; the same binarised pixels for all runs"
    found: dict[str, Any] = {
        "split": "test, all images, opened once",
        "nll": f"IWAE of {settings.k} sampled log-ratios an image{pixels}",
        "served": f"{served} images with the smallest hash of the id have served for earlier choices",
        "curve": f"k {', '.join(map(str, KS))} on {CURVE_IMAGES} images",
        "seed": settings.seed,
        "flops": "of the bound at k = 1 of one image",
    }
    if extractor is not None:
        facts = {"extractor": extractor.name, "sha256": extractor.sha256, "features": extractor.dimensions}
        found["distance"] = {**facts, "samples": settings.samples}
    return found


def _chance(sweeps: Sequence[Sweep]) -> dict[str, dict[str, Any]]:
    """Fraction -> the seconds, seeds and trials that each kind had there, and the winners' settings."""
    found = {}
    for plan in (sweep.plan for sweep in sweeps):
        winners = {kind: plan["trials"][name]["settings"] for kind, name in plan["winners"].items()}
        given = {"core_seconds": plan["core_seconds"], "seeds": plan["seeds"]}
        trials = len(plan["trials"]) // len(winners)
        found[f"{plan['fraction']:g}"] = {**given, "trials_of_a_kind": trials, "winners": winners}
    return found
