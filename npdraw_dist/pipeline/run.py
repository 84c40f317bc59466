"""All stages of a run in order, and the table at its end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.sources import open_source
from npdraw_dist.pipeline import bank, parse, prior, sample, vae
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.rejects import REJECTS
from npdraw_dist.pipeline.store import FOLDERS, Store, finished

STAGES: Mapping[str, Callable[[Experiment, Store], dict[str, Any]]] = {
    "bank": bank.run,
    "parse": parse.run,
    "prior": prior.run,
    "vae": vae.run,
    "sample": sample.run,
}

PICTURES = (
    "bank/bank.png",
    "parses/preview.png",
    "samples.png",
    "generation.gif",
    "reconstructions.png",
    "curves.png",
)


def all_done(experiment: Experiment, store: Store, stages: Sequence[str]) -> bool:
    """True where each of `stages` has its output for this config."""
    return all(_done(experiment, store, stage) for stage in stages)


def _done(experiment: Experiment, store: Store, stage: str) -> bool:
    made_from = of_stage(experiment, stage)
    if stage == "sample":
        return store.has("metrics.json") and store.read_json("metrics.json").get("fingerprint") == made_from
    if stage == "vae" and not store.has("model", "model.safetensors"):
        return False
    return finished(store, FOLDERS[stage], made_from) is not None


def check_data(experiment: Experiment) -> None:
    """Opens the data set, so that a bad path is told before anything is written."""
    open_source(experiment.data, experiment.seed)


def run_stages(experiment: Experiment, store: Store, stages: Sequence[str], fresh: bool) -> dict[str, Any]:
    """Runs the stages in order; returns the manifest of each.

    A user's mistake found before any stage of a fresh run has finished leaves no run folder, unless
    the list of bad rows is in it.
    """
    results: dict[str, Any] = {}
    try:
        for stage, run in STAGES.items():
            if stage in stages:
                results[stage] = run(experiment, store)
    except UserError:
        first = FOLDERS[experiment.stage_names[0]]
        if fresh and not results and not store.has(first, REJECTS):
            store.remove()
        raise
    return results


def report(store: Store, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the table: stage, seconds, images/s, test numbers; then where the pictures are."""
    table = Table(title=None)
    for column, side in (("stage", "left"), ("seconds", "right"), ("images/s", "right"), ("numbers", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for stage, facts in results.items():
        seconds = facts.get("seconds", facts.get(f"{stage}/seconds", 0.0))
        rate = facts.get("images_per_s", facts.get(f"{stage}/images_per_s", 0.0))
        table.add_row(stage, f"{seconds:.1f}", f"{rate:,.0f}", _numbers(stage, facts))
    console.print(table)
    for picture in PICTURES:
        if store.has(*picture.split("/")):
            console.print(store.shown(*picture.split("/")))


def _numbers(stage: str, facts: Mapping[str, Any]) -> str:
    if stage == "bank":
        return f"{facts['k']} parts of {facts['patches']:,} patches, objective {facts['objective']:.3f}"
    if stage == "parse" and "canvas_mse" not in facts:
        return f"{facts['images']:,} images, no parts"
    if stage == "parse":
        return f"canvas MSE {facts['canvas_mse']:.4f}, {facts['mean_parts']:.1f} parts an image"
    if stage == "prior":
        return f"test NLL {facts['test_nll']:.2f} nats"
    if stage == "vae":
        return f"{facts['parameters']:,} parameters"
    return (
        f"NLL {facts['test/nll_iwae']:.2f} nats (IWAE {facts['test/k']}), ELBO {facts['test/elbo']:.2f}, "
        f"{facts['test/bits_per_dim']:.3f} bits/dim, {facts['test/n']} images"
    )
