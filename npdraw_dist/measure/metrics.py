"""Every number that a command reports, registered once: its title, unit and decimals.

To add a metric, compute it where its inputs are (`pipeline/scores.py` for a number of each image) and add
one line to METRICS. Tables, printed lines and standard errors follow. Imports nothing, so that any room
may read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """How a number is shown.

    title: its name in a line of text. unit: the text after the value. standard_error: a mean over images
    that is reported with its standard error, as NAME_se. compared: a column of `evaluate --compare`.
    """

    title: str
    decimals: int
    unit: str = ""
    standard_error: bool = False
    compared: bool = False

    def format(self, value: float | None) -> str:
        """The value with its decimals, without unit; "" for None."""
        return "" if value is None else f"{value:,.{self.decimals}f}"


# Edits: a region of one image on another, decoded (`evaluate/edits.py`).
EDITED = {
    **{
        f"{made}_{where}": Metric(f"{made} {where}", 4)
        for made in ("edit", "reconstructed", "pasted")
        for where in ("inside", "outside")
    },
    "edit_features": Metric("edit, features", 3),
    "pasted_features": Metric("pasted, features", 3),
}
METRICS = {
    # Bounds on log p(x); means over images.
    "nll_iwae": Metric("NLL", 2, "nats", standard_error=True, compared=True),
    "nll_iwae_given": Metric("NLL given the condition", 2, "nats", standard_error=True),
    "condition_gain": Metric("gain of the condition", 2, "nats", standard_error=True),
    "nll_iwae_se": Metric("standard error of the NLL", 2, "nats", compared=True),
    "elbo": Metric("ELBO", 2, "nats", standard_error=True, compared=True),
    "bits_per_dim": Metric("bits/dim", 4, compared=True),
    "authors_estimator": Metric("authors' estimator", 2, "nats", standard_error=True),
    "reconstruction": Metric("log p(x|z)", 2, "nats"),
    "effective_samples": Metric("effective samples", 1),
    # Terms of the KL, or the whole of it.
    "kl_whether": Metric("KL of whether", 2, "nats"),
    "kl_what": Metric("KL of what", 2, "nats"),
    "kl_where": Metric("KL of where", 2, "nats"),
    "kl_presence": Metric("KL of presence", 2, "nats"),
    "kl_appearance": Metric("KL of appearance", 2, "nats"),
    "kl": Metric("KL", 2, "nats"),
    "parts_share": Metric("share of parts", 3),
    # Distances between samples and images.
    "frechet_distance": Metric("Frechet distance", 3, compared=True),
    "kernel_distance": Metric("kernel distance", 4, compared=True),
    "precision": Metric("precision", 3, compared=True),
    "recall": Metric("recall", 3, compared=True),
    **EDITED,
    # Parts and canvas.
    "canvas_mse": Metric("canvas MSE", 4),
    "mean_parts": Metric("parts an image", 1),
    "active_parts": Metric("parts an image", 1),
    "active_objects": Metric("objects an image", 1),
    "bank_used": Metric("fraction of the bank in use", 3),
    "bank_perplexity": Metric("bank perplexity", 1),
    "prior_nll": Metric("prior NLL", 2, "nats"),
    # What the model and its training cost.
    "parameters": Metric("parameters", 0, compared=True),
    "images_seen": Metric("images seen", 0, compared=True),
    "train_seconds": Metric("seconds", 0, compared=True),
}
COMPARED = tuple(name for name, metric in METRICS.items() if metric.compared)
WITH_ERROR = tuple(name for name, metric in METRICS.items() if metric.standard_error)


def format_metrics(numbers: Mapping[str, Any], *names: str, prefix: str = "") -> str:
    """`NLL 88.21 ± 0.40 nats, ELBO -94.10 ± 0.45 nats`: all metrics that `numbers` holds, or `names` of them.

    prefix: of the keys of `numbers`, such as `test/`.
    """
    found = []
    for name in names or METRICS:
        metric, value = METRICS[name], numbers.get(prefix + name)
        if value is None or name.endswith("_se"):
            continue
        error = numbers.get(f"{prefix}{name}_se")
        spread = "" if error is None else f" ± {metric.format(error)}"
        found.append(f"{metric.title} {metric.format(value)}{spread} {metric.unit}".rstrip())
    return ", ".join(found)
