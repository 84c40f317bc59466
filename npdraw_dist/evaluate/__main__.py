"""python -m npdraw_dist.evaluate: the numbers of a trained model and their protocol, or a table of runs."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, ClassVar

from pydantic import Field

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.help import marked
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.extras import require_extra
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.training.environment import restart_with_environment

OF_SWEEPS = ("k", "samples", "extractor", "fid-weights", "fid-features", "seed", "served", "scale")


class Evaluate(Command, EvaluationSettings):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures NLL, ELBO, bits/dim and, with an extractor, Frechet and kernel distance of a model.

    Data settings that are not given are those of the model's run. --compare SWEEP ... of sweeps of the space
    `comparison` opens their test split once and writes a report to the folder --out; --compare RUN ... of
    evaluated runs writes a table and plots.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *(
            "model",
            "split",
            "k",
            "images",
            "samples",
            "extractor",
            "fid-weights",
            "seed",
            "compare",
            "served",
            "out",
        ),
        *("data.source", "data.path", "scale.num_workers", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--model runs/digits/model --k 100",
        "--model runs/digits/model --extractor digits.pt --samples 1000 --out digits.json",
        "--compare runs/first runs/second --out comparison",
        "--compare runs/comparison-mnist_cpu-100 --extractor classifier.pt --out report",
    )

    @classmethod
    def without_flags(cls, given: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
        return "", {"data": marked(DataConfig, "the run's"), "seed": "the run's"}

    compare: list[str] = Field(
        [],
        description="sweeps of the space comparison, or run folders, each with its evaluation.json",
    )
    served: Annotated[int, Field(ge=0)] = Field(
        0,
        description="of --compare SWEEP: test images that served for choices (those of --images), told apart",
    )
    out: str | None = Field(None, description="result file; if not given, evaluation.json in the run folder")


def spread(argv: Sequence[str], flag: str) -> list[str]:
    """Turns `--flag A B` into `--flag A --flag B`, which pydantic-settings can parse."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        values = list(takewhile(lambda w: not w.startswith("--"), rest)) if word == flag else []
        words += [w for value in values for w in (flag, value)] if values else [word]
        rest = rest[len(values) :]
    return words


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Evaluate, "npdraw_dist.evaluate", spread(argv, "--compare"))
    out, runs = flags.pop("out", None), flags.pop("compare", [])
    served = flags.pop("served", None)
    if runs:
        _compare(runs, out, flags if served is None else {**flags, "served": served})
        return
    if served is not None:
        raise UserError("--served is a flag of --compare SWEEP ...; leave it out")
    if "model" not in flags:
        raise UserError("--model is missing: a model folder such as runs/digits/model (or --compare RUN ...)")

    for flag in ("--fid-weights", "--extractor"):
        if flag.removeprefix("--") in flags:
            require_extra(flag, "metrics", "torchmetrics", "torch_fidelity")

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.core.outputs import require_writable_file
    from npdraw_dist.evaluate import protocol
    from npdraw_dist.pipeline.model_card import publish
    from npdraw_dist.pipeline.model_run import find_run
    from npdraw_dist.pipeline.models import chosen_model
    from npdraw_dist.training.workers import device_here

    flags["model"] = chosen_model(flags["model"])
    settings = validate(EvaluationSettings, protocol.with_defaults(flags))
    if out is None:
        run = find_run(settings.model)
        if run is None:
            raise UserError("--out is missing, and the model is in no run folder; give --out FILE.json")
        out = f"{run[0]}/{protocol.RESULT}"
    require_writable_file(out)
    if settings.scale.here:
        device_here(settings.scale)
    else:
        from npdraw_dist.training.resources import require_gpu

        require_gpu(settings.scale)
    result = protocol.evaluate(settings, "num_workers" in flags.get("scale", {}))
    protocol.write_result(result, out)
    picture = protocol.write_picture(settings, out)
    card = publish(settings.model, result)
    print("\n".join([*protocol.summary_lines(result), *filter(None, (out, picture, card))]))


def _compare(runs: list[str], out: str | None, others: dict[str, Any]) -> None:
    if out is None:
        raise UserError("--compare needs --out, the folder of the table and the plots")
    from npdraw_dist.core.outputs import require_writable_folder
    from npdraw_dist.evaluate.entries import is_sweep

    if any(map(is_sweep, runs)):
        _compare_sweeps(runs, out, others)
        return
    if others:
        raise UserError(
            f"--compare of runs takes --out only, not --{next(iter(others))}: they are evaluated already "
            f"({runs[0]} is no sweep --space comparison)"
        )
    from npdraw_dist.evaluate.comparison import compare

    require_writable_folder(out)
    print("\n".join(compare(runs, out)))


def _compare_sweeps(sweeps: list[str], out: str, flags: dict[str, Any]) -> None:
    for flag in flags:
        if flag not in OF_SWEEPS:
            raise UserError(f"--{flag} is no flag of --compare SWEEP ... (it takes {', '.join(OF_SWEEPS)})")
    for flag in ("fid-weights", "extractor"):
        if flag in flags:
            require_extra(f"--{flag}", "metrics", "torchmetrics", "torch_fidelity")
    from npdraw_dist.core.outputs import require_writable_folder
    from npdraw_dist.evaluate.kinds import compare_kinds

    served = int(flags.pop("served", 0))
    settings = validate(EvaluationSettings, {"k": 100, "model": sweeps[0], **flags})
    require_writable_folder(out)
    print("\n".join(compare_kinds(sweeps, settings, served, out)))


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
