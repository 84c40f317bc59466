"""npdraw report: opens the test split of finished comparisons once and compares their models."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.schema import Seed
from npdraw_dist.config.section import Count
from npdraw_dist.evaluate.settings import EvaluationSettings, Measurement, require_metrics, spread


class Report(Command, Measurement):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures the final models of comparisons (`npdraw sweep --space comparison`) on their test images.

    Writes tables, plots and samples to the folder --out. The test split of a comparison is opened once, and a
    run whose test split was opened before is refused. The same command again measures only what is missing.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("sweeps", "out", "k", "samples", "extractor", "fid-weights", "served", "seed"),
        *("scale.num_workers", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--sweeps runs/comparison-mnist_cpu-100 --extractor classifier.pt --out report",
    )

    sweeps: list[str] = Field(description="folders of comparisons that have finished, on the same data")
    out: str = Field(description="the folder to write to")
    k: PositiveInt = Field(100, description="importance samples of the likelihood")
    samples: PositiveInt | None = Field(10_000, description="samples for the distances")
    served: Count = Field(
        0, description="number of test images to leave out, because choices used them (`evaluate --images`)"
    )
    seed: Seed = Field(0, description="seed of noise and samples")


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Report, "tune_spaces.report", spread(argv, "--sweeps"))
    require_metrics(flags)
    found: Report = validate(Report, flags)

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.distributed.start import placed
    from npdraw_dist.system.storage import require_writable
    from tune_spaces.opening import report

    require_writable(found.out, folder=True)
    own = {name: getattr(found, name) for name in Measurement.model_fields}
    settings = EvaluationSettings(**{**own, "model": found.sweeps[0], "scale": placed(found.scale)})
    print("\n".join(report(found.sweeps, settings, found.served, found.out)))


if __name__ == "__main__":
    run_command(main)
