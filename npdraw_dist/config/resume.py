"""Which settings a resumed run may change although the fingerprints of its stages contain them.

Those fingerprints name what finished runs hold, so the settings stay in them. A resumed run keeps its own
values there, and does what is asked now.
"""

from typing import Any

from npdraw_dist.config.load import differences, merge, with_changes
from npdraw_dist.config.schema import Experiment

DATA_PATH = "data.path"  # data may be moved; whether they are the same, their identity tells


def may_change(run: Experiment) -> tuple[str, ...]:
    """The dotted settings that change no result of `run` but by chance, apart from the path of its data.

    train.precision is one of them on a CPU only, where it has no meaning; the stage knows where it runs.
    """
    # Other micro-batches have the same images, with noise of other seeds from the same distribution.
    always = ("train.compile", "train.precision", "train.micro_batch")
    # If train.select is best, the checkpoint that a stage passes on depends on when checkpoints are made.
    return (*always, "train.eval_every_images") if run.train.select == "last" else always


def other_settings(run: Experiment, asked: Experiment) -> list[str]:
    """The settings by which `asked` is another run than `run`, as "key: old -> new", the path among them."""
    changed = differences(run.deciding(), asked.deciding())
    free = may_change(run)
    return [change for change in changed if change.partition(":")[0] not in free]


def batch_of_resume(run: Experiment, asked: Experiment, stage: str) -> tuple[int, int]:
    """The global batch and the micro-batch of a stage of `run` that is carried out as `asked`, in images.

    The micro-batch is the one that `run` began with, as its config.yaml states it: lowered for the workers of
    its first start. Only more workers, or another train.micro_batch, change it.
    """
    same = run.train.micro_batch == asked.train.micro_batch
    workers = asked.scale.most_workers
    return asked.batch_of(stage, max(workers, run.scale.most_workers) if same else workers)


def settle(run: Experiment, asked: Experiment) -> tuple[Experiment, dict[str, Any]]:
    """`asked` with the values of `run` where a resume may change them, and those that are asked instead.

    The first has the fingerprints of `run`; the second is nested, and empty if nothing differs.
    """
    own: dict[str, Any] = {}
    instead: dict[str, Any] = {}
    for key in (*may_change(run), DATA_PATH):
        section, _, name = key.partition(".")
        old, new = (getattr(getattr(experiment, section), name) for experiment in (run, asked))
        own = merge(own, {section: {name: old}})
        if old != new:
            instead = merge(instead, {section: {name: new}})
    return with_changes(asked, own), instead
