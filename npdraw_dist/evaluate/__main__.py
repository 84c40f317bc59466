"""npdraw evaluate: the numbers of a trained model and their protocol, or a table of runs."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from npdraw_dist.config.cli import parse_flags, run_command, validate
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import device_here, require_extra
from npdraw_dist.evaluate.settings import PLAN, RESULT, Evaluate, EvaluationSettings
from npdraw_dist.training.environment import restart_with_environment

OF_SWEEPS = ("k", "samples", "extractor", "fid-weights", "seed", "served", "scale")


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


# Torch and Ray take seconds to import, so each function checks its flags before it imports them.


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Evaluate, "npdraw_dist.evaluate", spread(argv, "--compare"))
    for flag in ("fid-weights", "extractor"):
        if flag in flags:
            require_extra(f"--{flag}", "metrics", "torchmetrics", "torch_fidelity")
    out, runs = flags.pop("out", None), flags.pop("compare", [])
    if runs:
        _compare(runs, out, flags)
        return
    if "served" in flags:
        raise UserError("--served is a flag of --compare SWEEP ...; leave it out")
    if "model" not in flags:
        raise UserError("--model is missing: a run such as runs/digits (or --compare RUN ...)")
    _evaluate(out, flags)


def _settings(flags: dict[str, Any]) -> EvaluationSettings:
    from npdraw_dist.distributed.start import placed

    found: EvaluationSettings = validate(EvaluationSettings, flags)
    return found.model_copy(update={"scale": placed(found.scale)})


def _evaluate(out: str | None, flags: dict[str, Any]) -> None:
    from npdraw_dist.core.storage import require_writable
    from npdraw_dist.evaluate import protocol
    from npdraw_dist.pipeline.inputs import find_run
    from npdraw_dist.pipeline.models import chosen_model, publish

    flags["model"] = chosen_model(flags["model"])
    settings = _settings(protocol.with_defaults(flags))
    if out is None:
        run = find_run(settings.model)
        if run is None:
            raise UserError("--out is missing, and the model is in no run folder; give --out FILE.json")
        out = f"{run[0]}/{RESULT}"
    require_writable(out)
    if settings.scale.here:
        device_here(settings.scale.use_gpu)
    else:
        from npdraw_dist.distributed.resources import require_gpu

        require_gpu(settings.scale)
    result, written = protocol.evaluate(settings, "num_workers" in flags.get("scale", {}), out)
    card = publish(settings.model, result)
    print("\n".join([*protocol.summary_lines(result), *written, *filter(None, [card])]))


def _compare(runs: list[str], out: str | None, flags: dict[str, Any]) -> None:
    if out is None:
        raise UserError("--compare needs --out, the folder of what it writes")
    from npdraw_dist.core.storage import is_file, open_filesystem, require_writable

    sweeps = any(is_file(*open_filesystem(f"{run}/{PLAN}")) for run in runs)
    for flag in flags:
        if not sweeps:
            raise UserError(
                f"--compare of runs takes --out only, not --{flag}: they are evaluated already "
                f"({runs[0]} is no sweep --space comparison)"
            )
        if flag not in OF_SWEEPS:
            raise UserError(f"--{flag} is no flag of --compare SWEEP ... (it takes {', '.join(OF_SWEEPS)})")
    require_writable(out, folder=True)
    if sweeps:
        from npdraw_dist.evaluate.comparison import compare_sweeps

        settings = _settings({"k": 100, "samples": 10_000, "model": runs[0], **flags})
        paths = compare_sweeps(runs, settings, out)
    else:
        from npdraw_dist.evaluate.runs_table import compare_runs

        paths = compare_runs(runs, out)
    print("\n".join(paths))


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
