"""The sections of the bench, in order. A new section is a file with `run(work)` and a line in SECTIONS."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from npdraw_dist.bench import capacity, machine
from npdraw_dist.bench.workload import Facts, Figures, open_workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.progress import console

# Section -> its file. Each is imported when it runs: Ray takes seconds to import.
SECTIONS = {
    "machine": "machine",  # first: what the others were measured on
    "bank": "clustering",
    "parse": "parsing",
    "drawing": "rendering",
    "step": "training_step",
    "shards": "shard_costs",
    "training": "training_loop",
    "scale": "scaling",
    "serve": "editor_load",
}

Found = dict[str, Facts | Figures]


@dataclass(frozen=True)
class Extent:
    """How much is measured. quick: less of all. dense: the dense VAE step. scale, serve: these sections."""

    quick: bool = False
    dense: bool = True
    scale: bool = False
    serve: bool = False


def measure(experiment: Experiment, extent: Extent) -> Found:
    """Section -> its figures."""
    work = open_workload(experiment, extent.quick, extent.dense)
    found: Found = {}
    for name, file in SECTIONS.items():
        if getattr(extent, name, True):
            console.print(f"measuring {name} ...")
            found[name] = import_module(f"npdraw_dist.bench.{file}").run(work)
    found["machine"]["peak_rss_mb"] = machine.peak_rss_mb()
    if extent.scale:
        found["plan"] = capacity.plan_errors(flat(found))
    return found


def flat(found: Mapping[str, Facts | Figures]) -> Facts:
    """Figure -> value, of all sections."""
    return {figure: value for figures in found.values() for figure, value in figures.items()}
