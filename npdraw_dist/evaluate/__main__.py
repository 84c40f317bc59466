"""npdraw evaluate: measures a trained model and records how, or writes a table of evaluated runs."""

from collections.abc import Sequence
from typing import Any

from npdraw_dist.config.cli import own_flags, parse_flags, run_command, validate
from npdraw_dist.config.help import flag_of
from npdraw_dist.evaluate.settings import (
    RESULT,
    ConditionTest,
    Evaluate,
    EvaluationSettings,
    Mode,
    Questions,
    require_metrics,
    spread,
)
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import local_device

# Each function checks its flags before it imports torch and Ray, since these imports take seconds.


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Evaluate, "npdraw_dist.evaluate", spread(argv, "--compare"))
    mode = own_flags(Mode, flags)
    if mode.check_conditions:
        _conditions(mode.out, flags)
        return
    for flag in flags.keys() & Questions.model_fields.keys():
        raise UserError(f"--{flag_of([flag])} is a flag of --check-conditions; leave it out")
    require_metrics(flags)
    if mode.compare:
        _compare(mode.compare, mode.out, flags)
        return
    if "model" not in flags:
        raise UserError("--model is missing; give a run such as runs/digits (or --compare RUN ...)")
    _evaluate(mode.out, flags)


def _evaluate(out: str | None, flags: dict[str, Any]) -> None:
    from npdraw_dist.distributed.start import placed
    from npdraw_dist.evaluate import protocol
    from npdraw_dist.pipeline.inputs import find_run
    from npdraw_dist.pipeline.trained_models import chosen_model, publish
    from npdraw_dist.system.storage import require_writable

    flags["model"] = chosen_model(flags["model"])
    settings: EvaluationSettings = validate(EvaluationSettings, protocol.with_defaults(flags))
    settings = settings.model_copy(update={"scale": placed(settings.scale)})
    if out is None:
        run = find_run(settings.model)
        if run is None:
            raise UserError("--out is missing, and the model is in no run folder; give --out FILE.json")
        out = f"{run[0]}/{RESULT}"
    require_writable(out)
    if settings.scale.in_process:
        local_device(settings.scale.use_gpu)
    else:
        from npdraw_dist.distributed.resources import require_gpu

        require_gpu(settings.scale)
    result, written = protocol.evaluate(settings, "num_workers" in flags.get("scale", {}), out)
    stated = publish(settings.model, result)
    print("\n".join([*protocol.summary_lines(result), *written, *filter(None, [stated])]))


def _conditions(out: str | None, flags: dict[str, Any]) -> None:
    if out is None:
        raise UserError("--check-conditions needs --out, the folder of what it writes")
    known = ConditionTest.model_fields
    for flag in flags.keys() - known.keys():
        raise UserError(f"--check-conditions takes no --{flag_of([flag])} (it takes {', '.join(known)})")
    settings: ConditionTest = validate(ConditionTest, {**flags, "out": out})

    from npdraw_dist.evaluate.conditions import measure_conditions

    print("\n".join(measure_conditions(settings)))


def _compare(runs: list[str], out: str | None, flags: dict[str, Any]) -> None:
    if out is None:
        raise UserError("--compare needs --out, the folder of what it writes")
    for flag in flags:
        raise UserError(
            f"--compare takes --out only, not --{flag_of([flag])}; the runs are already evaluated"
        )
    from npdraw_dist.evaluate.runs_table import compare_runs
    from npdraw_dist.system.storage import require_writable

    require_writable(out, folder=True)
    print("\n".join(compare_runs(runs, out)))


if __name__ == "__main__":
    run_command(main)
