"""Runs that began before a default changed keep the old one, so that the same command still resumes them."""

from typing import Any

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.store import Store

# (section, setting) -> its old default, and the version that changed it.
CHANGED: dict[tuple[str, str], tuple[Any, str]] = {
    ("train", "select"): ("last", "0.2.0"),
    ("vae", "hard_share"): (0.0, "0.3.0"),
    ("vae", "parse_ramp"): (0.3, "0.3.0"),
    ("train", "patience"): (0, "0.3.0"),
    ("train", "shuffle_mb"): (0.0, "0.3.0"),
}


def keep_old_defaults(store: Store, experiment: Experiment) -> tuple[Experiment, list[str]]:
    """`experiment` with the old default of each setting that nobody gave and the run began with.

    Also a line for each such setting.
    """
    if not store.has("config.yaml"):
        return experiment, []
    begun, asked, lines = store.config(), experiment, []
    for (section, name), (old, since) in CHANGED.items():
        given = name in getattr(asked, section).model_fields_set
        if given or getattr(getattr(begun, section), name) != old:
            continue
        now = getattr(getattr(asked, section), name)
        lines.append(f"{section}.{name}: {old}, as the run began ({now} by default since {since})")
        experiment = with_changes(experiment, {section: {name: old}})
    return experiment, lines
