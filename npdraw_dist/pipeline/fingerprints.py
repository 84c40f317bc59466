"""What each stage's output depends on, as a chain of fingerprints."""

from typing import Any

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.schema import Experiment, PriorNetwork
from npdraw_dist.core.made_by import fingerprint


def of_stage(experiment: Experiment, stage: str) -> str:
    """The fingerprint of `stage`'s output: of every setting that decides it and of the stages before it.

    Raises KeyError if the model's kind has no such stage.
    """
    found, chain = {}, ""
    for name, settings in _settings(experiment).items():
        found[name] = chain = fingerprint({**settings, "input": chain})
    return found[stage]


def _settings(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """stage -> the settings that decide its output, in the order of the stages."""
    e = experiment.deciding()
    binarize = e["data"].pop("binarize")  # only the likelihood sees binarised images
    vae = {"vae": e["vae"], "binarize": binarize, "model": e["model"]}
    sample = {"eval": e["eval"]}
    init = {"init": e["init"]}
    if experiment.model.kind != "npdraw":
        # Of the grid a baseline sees only what comes in over the edge of moved images.
        edge = {"background": e["grid"]["background"]}
        if KINDS[experiment.model.kind].codes:
            network = {*PriorNetwork.model_fields, "weight_decay"}
            edge["prior"] = {name: value for name, value in e["prior"].items() if name in network}
        return {
            "parse": {"data": e["data"], "seed": e["seed"]},
            "vae": {**vae, "train": e["train"], "baseline": e["baseline"], **edge, **init},
            "sample": sample,
        }
    return {
        "bank": {"data": e["data"], "grid": e["grid"], "bank": e["bank"], "seed": e["seed"], **init},
        "parse": {"parse": e["parse"]},
        "prior": {"prior": e["prior"], "train": e["train"]},
        "vae": vae,
        "sample": sample,
    }
