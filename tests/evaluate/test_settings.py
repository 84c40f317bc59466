"""The flags of `evaluate` as its settings."""

from npdraw_dist.config.cli import parse_flags, validate
from npdraw_dist.evaluate.__main__ import Evaluate, spread
from npdraw_dist.evaluate.settings import EvaluationSettings


def settings(*argv: str) -> EvaluationSettings:
    flags = parse_flags(Evaluate, "npdraw_dist.evaluate", argv)
    found: EvaluationSettings = validate(EvaluationSettings, flags)
    return found


def test_flags_with_dashes_and_numbers() -> None:
    found = settings(
        "--model", "m", "--fid-weights", "w.pth", "--fid-features", "64", "--data.source", "mnist"
    )
    assert (found.model, found.fid_weights, found.fid_features) == ("m", "w.pth", 64)
    assert found.data.source == "mnist"
    assert settings("--model", "m").fid_features == 2048


def test_runs_to_compare_are_spread_over_flags() -> None:
    argv = ["--compare", "a", "b", "--out", "c", "d"]
    assert spread(argv, "--compare") == ["--compare", "a", "--compare", "b", "--out", "c", "d"]
    assert spread(["--compare"], "--compare") == ["--compare"]
    flags = parse_flags(Evaluate, "npdraw_dist.evaluate", spread(argv[:5], "--compare"))
    assert (flags["compare"], flags["out"]) == (["a", "b"], "c")
