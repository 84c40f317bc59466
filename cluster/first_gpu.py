"""python -m cluster.first_gpu: measures a GPU that this project has not met, step after step.

Each step is a command of the project in a process of its own (`cluster.first_gpu_steps`). A call begins steps
as long as they fit into its minutes; the same call again goes on. Nothing is kept but files below --out, so a
call may run on another machine with the same card.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveFloat

from cluster.first_gpu_report import write
from cluster.first_gpu_steps import STEPS, Outcome, Step, World
from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.core.errors import UserError

SOME_LEFT = 75  # the exit status while steps are left
ATTEMPTS = 2  # of a step that fails
MOST_CALLS = 6  # of a step that goes on from call to call


class FirstGpu(Command):
    """Runs the GPU tests, the bench, k-means, a training, samples and the editor on this machine's GPU."""

    data: str = Field(description="the folder of the images, or digits for scikit-learn's")
    source: str = Field("mnist", description="the data source of that folder, of images of 28x28")
    out: Path = Field(description="the folder for results; a later call needs it")
    small: bool = Field(False, description="small sizes, which a CPU takes too")
    minutes: PositiveFloat = Field(
        7.5, description="of this call; a command that must be stopped then takes some seconds more"
    )


def read_outcomes(out: Path) -> dict[str, Outcome]:
    """What earlier calls left."""
    found = {}
    for step in STEPS:
        file = out / "steps" / f"{step.name}.json"
        if file.exists():
            found[step.name] = Outcome(**json.loads(file.read_text()))
    return found


def keep(out: Path, step: Step, outcome: Outcome) -> None:
    """Writes beside and renames: a call may be cut off at any moment."""
    file = out / "steps" / f"{step.name}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(outcome.__dict__, indent=2) + "\n")
    partial.rename(file)


def is_over(outcome: Outcome | None) -> bool:
    """Whether a step is not run again."""
    if outcome is None:
        return False
    most = {"done": 0, "failed": ATTEMPTS, "unfinished": MOST_CALLS}[outcome.status]
    return outcome.calls >= most


def run_step(step: Step, world: World, before: Outcome | None, limit_s: float) -> Outcome:
    """One call of a step; an error of any kind is its outcome, so that the others are run."""
    calls = 1 if before is None else before.calls + 1
    earlier_s = 0.0 if before is None else before.seconds
    started = time.monotonic()
    try:
        status, figures, note = step.run(world, limit_s)
    except (UserError, OSError, ValueError, KeyError) as error:
        status, figures, note = "failed", {}, f"{type(error).__name__}: {error}"
    seconds = round(earlier_s + time.monotonic() - started, 1)
    return Outcome(status, calls, seconds, note, figures, world.commands)


def main(argv: Sequence[str]) -> None:
    settings: FirstGpu = validate(FirstGpu, parse_flags(FirstGpu, "cluster.first_gpu", argv))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; a training is ended by it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    out = settings.out.absolute()
    if not out.parent.is_dir():
        raise UserError(f"--out {settings.out}: there is no folder {out.parent}")
    (out / "steps").mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * settings.minutes
    began = False
    for step in STEPS:
        outcomes = read_outcomes(out)
        if is_over(outcomes.get(step.name)):
            continue
        left_s = ends - time.monotonic()
        if began and left_s < step.needs_s:
            break
        limit_s = min(max(left_s, step.needs_s), step.most_s)
        print(f"{step.name}: at most {limit_s:.0f} s ...", flush=True)
        world = World(settings.data, settings.source, out, settings.small, outcomes, step.name)
        outcome = run_step(step, world, outcomes.get(step.name), limit_s)
        began = True
        if step.name == "machine" and outcome.status == "failed":
            raise UserError(outcome.note)  # the others would measure something else
        keep(out, step, outcome)
        print(f"{step.name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.note}".rstrip(), flush=True)
        if outcome.status == "unfinished":
            break
    outcomes = read_outcomes(out)
    left = [step.name for step in STEPS if not is_over(outcomes.get(step.name))]
    write(out, outcomes, left, settings.small)
    print(f"{out / 'first_gpu.md'}; left: {', '.join(left) or 'nothing'}")
    if left:
        sys.exit(SOME_LEFT)


if __name__ == "__main__":
    run_command(main)
