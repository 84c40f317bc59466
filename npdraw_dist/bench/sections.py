"""The sections of the bench, in order. A new section is a file with `run(work)` and a line in SECTIONS."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from npdraw_dist.bench import capacity, machine
from npdraw_dist.bench.workload import Facts, Figures, open_workload
from npdraw_dist.config.load import nearest
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.progress import console

# Section -> its file. Each is imported when it runs: Ray takes seconds to import.
SECTIONS = {
    "machine": "machine",  # first: what the others were measured on
    "bank": "clustering",
    "parse": "parsing",
    "drawing": "rendering",
    "step": "training_step",
    "kernels": "kernels",
    "compile": "compiling",
    "shards": "shard_costs",
    "training": "training_loop",
    "scale": "scaling",
    "serve": "editor_load",
}

Found = dict[str, Facts | Figures]


@dataclass(frozen=True)
class Extent:
    """How much is measured. quick: less of all. dense: the dense VAE step. scale, serve: these sections.

    only: the sections that are measured beside `machine`; empty: all, and `scale` and `serve` if asked.
    sizes: numbers of images of the section `scale`; None: its own.
    """

    quick: bool = False
    dense: bool = True
    scale: bool = False
    serve: bool = False
    only: tuple[str, ...] = ()
    sizes: tuple[int, ...] | None = None

    @property
    def sections(self) -> list[str]:
        if self.only:
            return [name for name in SECTIONS if name in ("machine", *self.only)]
        return [name for name in SECTIONS if getattr(self, name, name != "compile" or not self.quick)]


def chosen(text: str) -> tuple[str, ...]:
    """The sections named in `text`, separated by commas. Raises UserError on an unknown name."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in SECTIONS:
            raise UserError(
                f"unknown section {name!r}{nearest(name, list(SECTIONS))} (known: {', '.join(SECTIONS)})"
            )
    if not names:
        raise UserError(f"--only names none of {', '.join(SECTIONS)}")
    return names


def measure(experiment: Experiment, extent: Extent) -> Found:
    """Section -> its figures."""
    work = open_workload(experiment, extent.quick, extent.dense, extent.sizes)
    found: Found = {}
    for name in extent.sections:
        console.print(f"measuring {name} ...")
        found[name] = import_module(f"npdraw_dist.bench.{SECTIONS[name]}").run(work)
    found["machine"]["peak_rss_mb"] = machine.peak_rss_mb()
    if {"scale", "shards"} <= found.keys():
        found["plan"] = capacity.plan_errors(flat(found))
    return found


def flat(found: Mapping[str, Facts | Figures]) -> Facts:
    """Figure -> value, of all sections."""
    return {figure: value for figures in found.values() for figure, value in figures.items()}
