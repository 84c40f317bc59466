"""Declares all numbers that commands report, each once, with title, unit, decimals, direction and group.

To add a metric, compute it where its inputs are (`pipeline/scores.py` for a number per image) and add one
line to METRICS. Tables, printed lines, standard errors, model folders and reports read the declaration. This
file imports nothing from the project, so every module may import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# bound: a bound on log p(x). term: a term of the ELBO. distance: a distance between samples and images. edit:
# an error of edits. parts: the use of parts. cost: a model's cost in a comparison. run: the cost of a run.
Group = Literal["bound", "term", "distance", "edit", "parts", "cost", "run"]
Better = Literal["more", "less"]


@dataclass(frozen=True)
class Metric:
    """How a number is shown and compared.

    title: the name in a line of text. unit: the text after the value. better: whether more or less is better;
    None if neither is. standard_error: whether the number is a mean over images, with its standard error in
    NAME_se. compared: whether the table of `evaluate --compare` has a column for the number. tested: whether
    a comparison tests the number's difference between models. published: whether model folders state the
    number. scale: the number by which a value is divided before it is shown.
    """

    title: str
    decimals: int
    group: Group
    unit: str = ""
    better: Better | None = None
    standard_error: bool = False
    compared: bool = False
    tested: bool = False
    published: bool = False
    scale: float = 1

    def format(self, value: float | None) -> str:
        """The value as text, without its unit; "" for None."""
        return "" if value is None else f"{value / self.scale:,.{self.decimals}f}"


def _bound(title: str, better: Better, **more: Any) -> Metric:
    """Declares a bound in nats that is a mean over images."""
    return Metric(title, 2, "bound", "nats", better, standard_error=True, **more)


def _term(title: str) -> Metric:
    return Metric(title, 2, "term", "nats")


def _distance(title: str, decimals: int, better: Better) -> Metric:
    return Metric(title, decimals, "distance", "", better, compared=True, tested=True, published=True)


METRICS = {
    "nll_iwae": _bound("NLL", "less", compared=True, tested=True, published=True),
    "nll_iwae_given": _bound("NLL given the condition", "less", published=True),
    "condition_gain": _bound("gain of the condition", "more", published=True),
    "nll_iwae_se": Metric("standard error of the NLL", 2, "bound", "nats", compared=True),
    "elbo": _bound("ELBO", "more", compared=True, tested=True, published=True),
    "bits_per_dim": Metric("bits/dim", 4, "bound", "", "less", compared=True, published=True),
    "authors_estimator": _bound("authors' estimator", "less"),
    "reconstruction": _term("log p(x|z)"),  # each kind of model has only some of the terms
    "effective_samples": Metric("effective samples", 1, "bound"),
    "kl_whether": _term("KL of whether"),
    "kl_what": _term("KL of what"),
    "kl_where": _term("KL of where"),
    "kl_presence": _term("KL of presence"),
    "kl_appearance": _term("KL of appearance"),
    "kl": _term("KL"),
    "parts_share": Metric("share of parts", 3, "parts"),
    "frechet_distance": _distance("Frechet distance", 3, "less"),
    "kernel_distance": _distance("kernel distance", 4, "less"),
    "precision": _distance("precision", 3, "more"),
    "recall": _distance("recall", 3, "more"),
    # Errors of edits, which put a region of one image on another (`evaluate/edits.py`).
    **{
        f"{made}_{where}": Metric(f"{made} {where}", 4, "edit", "", "less", tested=made == "edit")
        for made in ("edit", "reconstructed", "pasted")
        for where in ("inside", "outside")
    },
    "edit_features": Metric("edit, features", 3, "edit", "", "less", tested=True),
    "pasted_features": Metric("pasted, features", 3, "edit", "", "less"),
    "canvas_mse": Metric("canvas MSE", 4, "parts", "", "less"),
    "mean_parts": Metric("parts an image", 1, "parts"),
    "active_parts": Metric("parts an image", 1, "parts"),
    "active_objects": Metric("objects an image", 1, "parts"),
    "bank_used": Metric("fraction of the bank in use", 3, "parts"),
    "bank_perplexity": Metric("bank perplexity", 1, "parts"),
    "prior_nll": Metric("prior NLL", 2, "bound", "nats", "less"),
    "parameters": Metric("parameters", 0, "cost", compared=True),
    "flops": Metric("MFLOP", 1, "cost", scale=1e6),
    "core_seconds": Metric("core-seconds", 0, "cost"),
    "images": Metric("images seen", 0, "cost"),
    "images_seen": Metric("images seen", 0, "run", compared=True),
    "train_seconds": Metric("seconds", 0, "run", compared=True),
}


def group(name: Group) -> tuple[str, ...]:
    """The names of the metrics of a group, in the order of METRICS."""
    return tuple(key for key, metric in METRICS.items() if metric.group == name)


COMPARED = tuple(name for name, metric in METRICS.items() if metric.compared)
TESTED = tuple(name for name, metric in METRICS.items() if metric.tested)
WITH_ERROR = tuple(name for name, metric in METRICS.items() if metric.standard_error)
PUBLISHED = tuple(
    key
    for name, metric in METRICS.items()
    if metric.published
    for key in (name, *([f"{name}_se"] if metric.standard_error else []))
)


def format_metrics(numbers: Mapping[str, Any], *names: str, prefix: str = "") -> str:
    """The metrics in `numbers` as text, such as `NLL 88.21 ± 0.40 nats, ELBO -94.10 ± 0.45 nats`.

    names: the metrics that are shown; if none is given, all. prefix: the prefix of the keys of `numbers`,
    such as `test/`.
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
