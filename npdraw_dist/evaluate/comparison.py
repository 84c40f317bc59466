"""`evaluate --compare` of sweeps of `--space comparison`: opens their test split once, writes the report."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pyarrow.fs import FileType

import npdraw_dist
from npdraw_dist.config.spec import Spec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.made_by import command_line
from npdraw_dist.core.storage import read_bytes, write_text
from npdraw_dist.evaluate.differences import Comparison
from npdraw_dist.evaluate.measured import How, measure, read, references
from npdraw_dist.evaluate.pools import ActorPool, PoolActor, Result
from npdraw_dist.evaluate.report import write_report
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.evaluate.sweeps import Entry, Sweep, open_test_split, read_sweep
from npdraw_dist.measure.distances import require_enough
from npdraw_dist.measure.features import ExtractorFile, find_extractor
from npdraw_dist.pipeline.models import read_spec
from npdraw_dist.pipeline.progress import console
from npdraw_dist.training.launch import start_ray

LEAST_FEATURES, SAMPLES = 64, 10_000
REFERENCES = "references.json"


class MeasureActor(PoolActor):
    """Measures a run at a time, on one CPU."""

    def __init__(self, how: How, extractor: ExtractorFile | None) -> None:
        super().__init__()
        self.how, self.extractor = how, extractor

    def __call__(self, item: Entry) -> Result:
        return {"images": measure(item, self.how, self.extractor)}


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
    spec = specs[0]
    extractor = find_extractor(*settings.extractor_flags, spec.image_shape)
    how = How(k=settings.k, samples=settings.samples or SAMPLES, seed=settings.seed)
    if extractor is not None:
        _require_useful(extractor, how)
    protocol = protocol_of(how, extractor, served, spec.binarize)
    open_test_split(sweeps, protocol)
    if settings.scale.here:
        for number, entry in enumerate(entries, start=1):
            measure(entry, how, extractor)
            console.print(f"{number}/{len(entries)} {entry.folder} is measured", markup=False)
    else:
        start_ray(settings.scale)
        pool = ActorPool.of(settings.scale, False).without_gpus()
        pool.run("measure", entries, 0, MeasureActor, how, extractor)
    beside = {} if extractor is None else _references(sweeps[0], entries[0], how, extractor, spec.binarize)
    facts = {**protocol, "chance_of_each_kind": _chance(sweeps), "made_by": _made_by()}
    measured = [read(entry) for entry in entries]
    return write_report(Comparison(measured, search, beside, facts, served), out)


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


def _require_useful(extractor: ExtractorFile, how: How) -> None:
    assert extractor.dimensions is not None
    if extractor.dimensions < LEAST_FEATURES:
        raise UserError(
            f"the extractor has {extractor.dimensions} features; a comparison takes {LEAST_FEATURES} or more "
            "(npdraw extractor --features 64)"
        )
    require_enough(how.samples, how.samples, extractor.dimensions)


def protocol_of(how: How, extractor: ExtractorFile | None, served: int, binarize: str) -> dict[str, Any]:
    """What decides the numbers: another one may not open the test split again."""
    pixels = "" if binarize == "none" else "; the same binarised pixels for all runs"
    found: dict[str, Any] = {
        "split": "test, all images, opened once",
        "nll": f"IWAE of {how.k} sampled log-ratios an image{pixels}",
        "served": f"{served} images with the smallest hash of the id have served for earlier choices",
        "curve": f"k {', '.join(map(str, how.ks))} on {how.curve_images} images",
        "seed": how.seed,
        "flops": "of the bound at k = 1 of one image",
    }
    if extractor is not None:
        found["distance"] = {
            "extractor": extractor.name,
            "sha256": extractor.sha256,
            "features": extractor.dimensions,
            "samples": how.samples,
        }
    return found


def _chance(sweeps: Sequence[Sweep]) -> dict[str, dict[str, Any]]:
    """Fraction -> the seconds, seeds and trials that each kind had there, and the winners' settings."""
    return {
        f"{sweep.fraction:g}": {
            "core_seconds": sweep.plan["core_seconds"],
            "seeds": sweep.plan["seeds"],
            "trials_of_a_kind": len(sweep.plan["trials"]) // len(sweep.plan["winners"]),
            "winners": {k: sweep.plan["trials"][n]["settings"] for k, n in sweep.plan["winners"].items()},
        }
        for sweep in sweeps
    }


def _made_by() -> dict[str, str]:
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": npdraw_dist.__version__,
    }


def _references(
    sweep: Sweep, entry: Entry, how: How, extractor: ExtractorFile, binarize: str
) -> Mapping[str, Mapping[str, float]]:
    """Floor and ceiling of the distances, computed once."""
    path = f"{sweep.root}/{REFERENCES}"
    if sweep.filesystem.get_file_info(path).type != FileType.File:
        found = references(entry, how, extractor, binarize)
        write_text(sweep.filesystem, path, json.dumps(found, indent=2) + "\n")
    known: dict[str, dict[str, float]] = json.loads(read_bytes(sweep.filesystem, path))
    return known
