"""python -m tune_spaces.sweep: trains many configs of a search space on Ray Tune and compares them."""

import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command, dashed, parse_flags, run_command, validate
from npdraw_dist.config.help import marked
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import restart_with_environment
from tune_spaces import spaces


def space_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(spaces.__path__))


class Options(BaseModel):
    """The sweep's own flags."""

    model_config = ConfigDict(allow_inf_nan=False)

    space: str = Field(description=f"a search space: {', '.join(space_names())}, or a .py file")
    preset: str | None = Field(None, description="a preset; default: the space's")
    config: str | None = Field(None, description="a YAML file of settings over the preset")
    num_samples: PositiveInt | None = dashed(None, "num-samples", "trials in all; default: the space's")
    name: str | None = Field(None, description="the sweep; default: sweep-<space>-<preset>")
    storage: str = Field("runs", description="folder or URI that holds the run folders")
    metric: str | None = Field(None, description="valid_nll or valid_prior_nll; default: the space's")
    search: Literal["random", "optuna"] = Field("random", description="what proposes the trials")
    scheduler: Literal["asha", "none"] = Field("asha", description="stop poor trials early, or none")
    max_concurrent_trials: PositiveInt | None = dashed(
        None, "max-concurrent-trials", "trials at once; default: as many as the CPUs or GPUs allow"
    )
    time_budget_s: PositiveFloat | None = dashed(
        None, "time-budget-s", "seconds after which the sweep stops; the same command resumes it"
    )
    kinds: str | None = Field(None, description="space comparison: kinds, separated by commas; default: all")
    seeds: PositiveInt | None = Field(
        None, description="space comparison: trainings of each kind's best trial; default: the space's"
    )
    core_seconds: PositiveFloat | None = dashed(
        None,
        "core-seconds",
        "space comparison: counted seconds of a core of each training; default: the space's",
    )
    longest: PositiveInt | None = Field(
        None,
        description="space comparison: longest training of a best trial, as a multiple of its time; "
        "default: the space's",
    )
    retry_failed: bool = dashed(False, "retry-failed", "run failed trials again")
    dry_run: bool = dashed(False, "dry-run", "print the trials and stop")


class Sweep(Command, Options, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Trains many configs of a search space; writes a table, plots and the best config.

    The same command again resumes the sweep. Settings come from the preset, then the space's budgets,
    then --config, then flags. The settings of the space vary.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("space", "preset", "config", "num-samples", "name", "storage", "metric", "search", "scheduler"),
        *("max-concurrent-trials", "time-budget-s", "kinds", "seeds", "core-seconds", "longest"),
        *("retry-failed", "dry-run", "seed", "data.fraction"),
        *("data.source", "data.path", "prior.images", "vae.images", "train.batch_size"),
        *("scale.cpus_per_worker", "scale.gpus_per_worker", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--space smoke",
        "--space structure --preset mnist_cpu --data.path MNIST_FOLDER --num-samples 40 --dry-run",
        "--space comparison --data.path MNIST_FOLDER --data.fraction 0.1 --dry-run",
    )

    @classmethod
    def without_flags(cls, given: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
        return "", marked(Experiment, "the space's")  # its preset and budgets


def parse(argv: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """The sweep's own flags, and those of the config."""
    flags: dict[str, Any] = parse_flags(Sweep, "tune_spaces.sweep", argv)
    names = [name for name in flags if name.replace("-", "_") in Options.model_fields]
    own = {name: flags.pop(name) for name in names}
    if "space" not in own:
        raise UserError("--space is missing; try --space smoke")
    return validate(Options, own), flags


def main(argv: Sequence[str]) -> None:
    options, flags = parse(argv)

    # Torch and Ray take seconds to import, so the flags are checked first.
    from tune_spaces.driver import run

    run(options, flags)


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
