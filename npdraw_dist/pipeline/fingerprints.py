"""What each stage's output depends on, as a chain of fingerprints."""

from typing import Any

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.fingerprint import fingerprint


def of_stage(experiment: Experiment, stage: str) -> str:
    """The fingerprint of `stage`'s output: all that decides it, its input's fingerprint included."""
    e = experiment.model_dump(mode="json")
    how = ("download", "cache_mb", "max_bad_fraction")
    data = {k: v for k, v in e["data"].items() if k not in (*how, "binarize")}
    if stage not in experiment.stage_names:
        raise KeyError(stage)
    facts: dict[str, dict[str, Any]] = {
        # How many actors cluster the patches does not change the bank.
        "bank": {"data": data, "grid": e["grid"], "bank": _without(e["bank"], "shards"), "seed": e["seed"]},
        "parse": {"parse": _without(e["parse"], "batch_size")},
        "prior": {"prior": e["prior"], "train": _without(e["train"], "keep_checkpoints")},
        "vae": {"vae": e["vae"], "binarize": e["data"]["binarize"], "model": e["model"]},
        "sample": {"eval": e["eval"]},
    }
    if experiment.model.kind != "npdraw":
        own = {"train": facts["prior"]["train"], "baseline": e["baseline"]}
        facts = {
            "parse": {"data": data, "seed": e["seed"]},
            "vae": {**facts["vae"], **own},
            "sample": facts["sample"],
        }
    chain = ""
    for name, values in facts.items():
        chain = fingerprint({**values, "input": chain})
        if name == stage:
            return chain
    raise KeyError(stage)


def _without(section: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in section.items() if k != key}
