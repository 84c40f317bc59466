"""Runs `npdraw report`: opens the test split of finished comparisons once, measures, and writes the report.

A run whose test split was opened before is refused, since test scores may have influenced choices. The first
start records an opening in every run. After an interruption, only the same protocol may continue.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from npdraw_dist.config.load import differences
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.distributed.start import start_ray
from npdraw_dist.distributed.tasks import map_items
from npdraw_dist.evaluate.protocol import images_in, made_by
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.distances import require_enough
from npdraw_dist.measure.features import ExtractorFile, find_extractor
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.trained_models import read_spec
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, read_bytes
from tune_spaces.comparison import OPENED, PLAN
from tune_spaces.measured import CURVE_IMAGES, KS, Entry, measure, read, references, source_of
from tune_spaces.report_tables import ReportData, write_report

REFERENCES, RESULTS = "references.json", "results.parquet"
OPENED_BY = "report"
LEAST_FEATURES = 64


@dataclass(frozen=True)
class Sweep:
    """A finished comparison. store: its folder. plan: its trials, winners and final runs."""

    store: Store
    plan: Mapping[str, Any]

    @property
    def fraction(self) -> float:
        return float(self.plan["fraction"])

    @property
    def runs(self) -> list[Store]:
        """The run folders of trials and final runs."""
        finals = [final["run"] for final in self.plan["finals"]]
        names = [*(f"trials/{name}" for name in self.plan["trials"]), *finals]
        return [Store(self.store.filesystem, self.store.path(name)) for name in names]

    def search(self) -> dict[str, list[float]]:
        """Kind -> the validation NLL of its trials that finished, the best first.

        Raises UserError if results.parquet, which a sweep writes last, is missing or damaged.
        """
        try:
            content = io.BytesIO(read_bytes(self.store.filesystem, self.store.path(RESULTS)))
            rows = pq.read_table(content, columns=["trial", "valid_nll"]).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.store.shown()}: {RESULTS} is unreadable ({error})") from None
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
            folder = self.store.shown(final["run"])
            found.append(Entry(folder, kind, self.fraction, int(final["seed"]), role, final, first))
        return found


def read_sweep(folder: str) -> Sweep:
    """Reads a comparison. Raises UserError if it has not finished.

    A kind has fewer seeds than planned if some failed; the report states their number.
    """
    store = Store(*open_filesystem(folder))
    plan = store.read_json(PLAN)
    if "finals" not in plan:
        raise UserError(f"{folder} has not finished; the same sweep command resumes it")
    return Sweep(store, plan)


def open_test_split(sweeps: Sequence[Sweep], protocol: Mapping[str, Any]) -> None:
    """Records the opening in every run of the sweeps, before any test image is read.

    Raises UserError if the test split of a run was opened before, by training or by another protocol.
    """
    protocol = json.loads(json.dumps(protocol))
    for sweep in sweeps:
        store, begun = sweep.store, sweep.store.has(OPENED)
        if begun and (changed := differences(store.read_json(OPENED), protocol)):
            raise UserError(
                f"the test split of {store.shown()} was opened with another protocol "
                f"({'; '.join(changed)}); take the first protocol"
            )
        for run in sweep.runs:
            found, name = run.openings(), run.shown()
            if found is None and run.has():  # a trial that failed before it began has no folder
                raise UserError(f"{name} does not say whether its test split was ever opened")
            if found and not (begun and [opening["by"] for opening in found] == [OPENED_BY]):
                by = next((o for o in found if o["by"] != OPENED_BY), found[-1])
                raise UserError(
                    f"the test split of {name} was already opened, by {by['by']} on {by['when']}; its test "
                    "scores may have influenced choices, so the run cannot be compared"
                )
    for sweep in sweeps:
        sweep.store.write_json(protocol, OPENED)
        for run in sweep.runs:
            if run.openings() == []:
                run.record_opening(OPENED_BY)


def report(folders: Sequence[str], settings: EvaluationSettings, served: int, out: str) -> list[str]:
    """Measures what is missing and writes the report; returns the paths of its files.

    settings: only temperature, pixels and the fields of `Measurement` are used. served: number of test images
    that earlier choices used. Raises UserError; too few test images raise it before the split is opened.
    """
    with ExitStack() as stack:
        for folder in folders:  # the lease keeps the sweep from continuing meanwhile
            stack.enter_context(read_sweep(folder).store.lease("comparison"))
        return _report(folders, settings, served, out)


def _report(folders: Sequence[str], settings: EvaluationSettings, served: int, out: str) -> list[str]:
    sweeps = [read_sweep(folder) for folder in folders]
    search = {sweep.fraction: sweep.search() for sweep in sweeps}
    entries = [entry for sweep in sweeps for entry in sweep.entries()]
    specs = [read_spec(f"{sweep.entries()[0].folder}/model") for sweep in sweeps]
    require_one_of_each(sweeps)
    extractor = find_extractor(settings.fid_weights, settings.extractor, specs[0].image_shape)
    needed = max(served, 0 if extractor is None else extractor.dimensions)
    images = min(images_in(source_of(sweep.entries()[0], "test"), "test", needed) for sweep in sweeps)
    if served >= images:
        raise UserError(f"--served {served:,} leaves none of {images:,} test images for the differences")
    if extractor is not None:
        if extractor.dimensions < LEAST_FEATURES:
            raise UserError(
                f"the extractor has {extractor.dimensions} features; a comparison takes {LEAST_FEATURES} or "
                "more (npdraw train-extractor --features 64)"
            )
        require_enough(images, settings.samples or 0, extractor.dimensions, "--samples, or no extractor")
    protocol = protocol_of(settings, served, extractor, specs[0].binarize)
    open_test_split(sweeps, protocol)
    work = partial(measure, settings=settings, extractor=extractor)
    if not settings.scale.in_process:
        start_ray(settings.scale)
    # Measures each run once: the longest run of a kind may be one of its seeds.
    once = list({entry.folder: entry for entry in reversed(entries)}.values())
    done = map(work, once) if settings.scale.in_process else map_items(once, work)
    for number, folder in enumerate(done, start=1):
        console.print(f"{number}/{len(once)} {folder} is measured", markup=False)
    beside: Mapping[str, Any] = {}
    if extractor is not None:  # floor and ceiling of the distances, computed once
        store = sweeps[0].store
        if not store.has(REFERENCES):
            store.write_json(references(entries[0], settings, extractor), REFERENCES)
        beside = store.read_json(REFERENCES)
    facts = {**protocol, "chance_of_each_kind": _chance(sweeps), "made_by": made_by()}
    given = {sweep.fraction: (sweep.plan["seeds"], sweep.plan["core_seconds"]) for sweep in sweeps}
    measured = [read(entry) for entry in entries]
    return write_report(ReportData(measured, search, beside, facts, given, served), out)


def require_one_of_each(sweeps: Sequence[Sweep]) -> None:
    """Raises UserError if two sweeps have the same fraction, or if they read different data."""
    fractions = [sweep.fraction for sweep in sweeps]
    if len(set(fractions)) < len(fractions):
        raise UserError(f"two sweeps have the same fraction ({', '.join(map(str, fractions))})")
    stores = [Store(*open_filesystem(sweep.entries()[0].folder)) for sweep in sweeps]
    data = [store.read_json("data", MANIFEST)["stamp"] for store in stores]
    other = [sweep.store.shown() for sweep, found in zip(sweeps, data, strict=True) if found != data[0]]
    if other:
        raise UserError(
            f"{other[0]} has other data than {sweeps[0].store.shown()}; report each of them alone"
        )


def protocol_of(
    settings: EvaluationSettings, served: int, extractor: ExtractorFile | None, binarize: str
) -> dict[str, Any]:
    """The settings that determine the report's numbers. A test split can be opened by one protocol only."""
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
        drawn = {"samples": settings.samples, "temperature": settings.temperature}
        found["distance"] = facts | drawn
    return found


def _chance(sweeps: Sequence[Sweep]) -> dict[str, dict[str, Any]]:
    """Fraction -> the seconds, seeds and trials given to each kind, and the settings of the winners."""
    found = {}
    for plan in (sweep.plan for sweep in sweeps):
        winners = {kind: plan["trials"][name]["settings"] for kind, name in plan["winners"].items()}
        given = {"core_seconds": plan["core_seconds"], "seeds": plan["seeds"]}
        trials = len(plan["trials"]) // len(winners)
        found[f"{plan['fraction']:g}"] = {**given, "trials_of_a_kind": trials, "winners": winners}
    return found
