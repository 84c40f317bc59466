"""npdraw sweep: trains many configs of a search space on Ray Tune and compares them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from npdraw_dist.config.cli import Command, own_flags, parse_flags, run_command
from npdraw_dist.config.help import marked
from npdraw_dist.config.schema import Experiment
from npdraw_dist.system.errors import UserError
from tune_spaces.options import Options


class Sweep(Command, Options, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Trains many configs of a search space; writes a table, plots and the best config.

    The same command again resumes the sweep. Settings come from the preset, then the budgets of the space,
    then --config, then flags; the space varies some of them.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("space", "preset", "config", "num-samples", "name", "storage", "metric", "search", "scheduler"),
        *("max-concurrent-trials", "kinds", "seeds", "core-seconds", "longest"),
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
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        return "", marked(Experiment, "the space's")  # the space sets preset and budgets


def parse(argv: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """Parses the sweep's own flags, and the flags of the config as a nested mapping."""
    flags: dict[str, Any] = parse_flags(Sweep, "tune_spaces.sweep", argv)
    if "space" not in flags:
        raise UserError("--space is missing; try --space smoke")
    return own_flags(Options, flags), flags


def main(argv: Sequence[str]) -> None:
    options, flags = parse(argv)

    # Torch and Ray take seconds to import, so the flags are checked first.
    from tune_spaces.driver import run

    run(options, flags)


if __name__ == "__main__":
    run_command(main)
