"""A mistake on the command line of a sweep, or a cluster that is too small, ends in one line."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.config.load import build, read_preset
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import cluster as cluster_file
from tests.helpers.counting import Counting
from tests.helpers.spaces import load_space
from tune_spaces.driver import base_config, claim
from tune_spaces.sweep import Options, main
from tune_spaces.trials import Plan, TrialResult, write_result
from tune_spaces.tuning import RecordingASHA, SweepCallback, divide, optuna_search

Refused = Callable[..., str]


@pytest.fixture
def one_line(refused: Refused) -> Refused:
    return partial(refused, main)


def test_optuna_is_asked_for_only_where_it_is_used(
    one_line: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if not installed
    error = one_line("--space", "smoke", "--search", "optuna", "--storage", str(tmp_path))
    assert "--search optuna needs npdraw_dist[optuna]: pip install 'npdraw_dist[optuna]'" in error


def test_another_sweep_of_the_same_name_is_refused(one_line: Refused, tmp_path: Path) -> None:
    options = Options(space="smoke")
    space = load_space("smoke")
    claim(Plan(Store.open(str(tmp_path), "s"), base_config(options, space, {}), space, "valid_nll"), options)
    same = ["--storage", str(tmp_path), "--name", "s"]
    assert "vae.images: 512 -> 640" in one_line("--space", "smoke", *same, "--vae.images", "640")
    error = one_line("--space", "smoke", *same, "--scheduler", "none")
    assert "scheduler: asha -> none" in error
    error = one_line("--space", "smoke", *same, "--metric", "valid_prior_nll")
    assert "metric: valid_nll -> valid_prior_nll" in error


def test_a_finished_sweep_only_writes_its_results_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No Ray is started for it; fewer trials are a part of it."""
    options, space = Options(space="smoke"), load_space("smoke")
    plan = Plan(Store.open(str(tmp_path), "s"), base_config(options, space, {}), space, "valid_nll")
    claim(plan, options)
    for point in ({}, {"prior.depth": 1, "vae.decoder_width": 1}):
        write_result(plan.run, plan.trial(point).result("failed", reason="no memory"))
    with pytest.raises(UserError, match="no trial finished; the first: no memory"):
        main(["--space", "smoke", "--storage", str(tmp_path), "--name", "s", "--num-samples", "1"])
    assert "no memory" in capsys.readouterr().out


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """cluster(cpus, ...): the CPUs of each node, or (CPUs, GPUs)."""

    def build_nodes(*nodes: Any) -> None:
        listed = []
        for number, node in enumerate(nodes):
            cpus, gpus = node if isinstance(node, tuple) else (node, 0)
            have = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
            listed.append({"Alive": True, "NodeManagerAddress": f"10.0.0.{number}", "Resources": have})
        fake = SimpleNamespace(nodes=lambda: listed)
        monkeypatch.setattr(cluster_file, "ray", fake)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return build_nodes


@pytest.mark.parametrize(
    ("nodes", "scale", "wanted", "trials", "expected"),
    [
        ((2,), {}, None, 12, (2, 1)),
        ((2,), {}, 1, 12, (1, 2)),
        ((8,), {}, None, 2, (2, 4)),
        ((8,), {"cpus_per_worker": 2}, None, 12, (4, 2)),
        ((8,), {"num_workers": 2, "cpus_per_worker": 2}, None, 12, (2, 2)),
        ((8, 8), {"num_workers": 2}, 2, 12, (2, 4)),
        (((8, 2), (8, 2)), {}, None, 12, (4, 4)),
        (((8, 2),), {"num_workers": 2}, None, 12, (1, 4)),
        ((0, 4), {}, None, 12, (4, 1)),
        (((8, 1), (8, 1), 64, 64), {}, None, 12, (2, 8)),  # the trials' workers are where the GPUs are
        (((8, 2),), {"gpus_per_worker": 0.25}, None, 12, (8, 1)),
        (((8, 2), 64), {"gpus_per_worker": 0.5, "num_workers": 2}, None, 12, (2, 2)),
        (((4, 2),), {"gpus_per_worker": 0.25, "use_gpu": False}, None, 12, (4, 1)),
    ],
)
def test_the_cluster_is_divided(
    cluster: Callable[..., None],
    nodes: tuple[Any, ...],
    scale: dict[str, Any],
    wanted: int | None,
    trials: int,
    expected: tuple[int, int],
) -> None:
    cluster(*nodes)
    found = divide(ScaleConfig(**scale), wanted, trials)
    assert (found.at_once, found.scale.cpus_per_worker) == expected


def test_the_share_of_a_trial_is_said(cluster: Callable[..., None]) -> None:
    cluster((8, 2))
    found = divide(ScaleConfig(gpus_per_worker=0.25), 8, 12)
    assert str(found) == "8 at once, each 1 worker(s) of 1 CPU(s) and 1/4 of a GPU"
    with pytest.raises(UserError, match="is 9, but the cluster fits 8 at once, each 1 worker of 1 CPU and 1"):
        divide(ScaleConfig(gpus_per_worker=0.25), 9, 12)


def test_a_cluster_that_is_too_small_is_refused(cluster: Callable[..., None]) -> None:
    cluster(2)
    with pytest.raises(UserError, match="3 workers of 1 CPUs need 3; the cluster has 2"):
        divide(ScaleConfig(num_workers=3), None, 4)
    with pytest.raises(UserError, match="--max-concurrent-trials is 3, but the cluster fits 2"):
        divide(ScaleConfig(), 3, 4)
    cluster(0)
    with pytest.raises(UserError, match="the cluster has 0"):
        divide(ScaleConfig(), None, 4)


def test_asha_stops_the_worse_half_but_never_at_the_end() -> None:
    stopped: list[tuple[str, int]] = []
    asha = RecordingASHA(8_000, lambda trial, result: stopped.append((trial.trial_id, result["images"])))
    controller: Any = None
    for number, loss in enumerate((50.0, 60.0, 40.0, 45.0)):
        trial: Any = SimpleNamespace(trial_id=str(number))
        asha.on_trial_add(controller, trial)
        for images in (2_000, 4_000, 6_000, 8_000):
            result = {"images": images, "score": loss}
            if asha.on_trial_result(controller, trial, result) == "STOP":
                break
    # 60 is worse than 50 at the first rung; 45 is no worse than the median of 50 and 40 at the second.
    assert stopped == [("1", 2_000)]


def test_a_stopped_trial_is_recorded_with_its_settings(tmp_path: Path) -> None:
    space = load_space("smoke")
    base = base_config(Options(space="smoke"), space, {})
    plan = Plan(Store.open(str(tmp_path), "s"), base, space, "valid_nll")
    SweepCallback(plan, 2).stopped(
        SimpleNamespace(config={"point": {"prior.depth": 1}}), {"score": 91.5, "images": 256}
    )
    (name,) = (tmp_path / "s" / "results").iterdir()
    trial = plan.trial({"prior.depth": 1})
    assert name.stem == trial.name
    assert trial.settings == {"prior.depth": 2, "vae.decoder_width": 16}
    result = TrialResult(**plan.run.read_json("results", name.name))
    assert "stopped: by ASHA at 256 images (prior.depth 2, " in result.line("valid_nll")


def test_the_end_of_a_trial_reads_its_own_result_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = load_space("smoke")
    base = base_config(Options(space="smoke"), space, {})
    counting = Counting()
    run = Store(fs.PyFileSystem(counting), str(tmp_path / "s"))
    plan = Plan(run, base, space, "valid_nll")
    points = [{"prior.depth": depth, "vae.decoder_width": width} for depth in (0, 1) for width in (0, 1)]
    trials = [plan.trial(point) for point in points]
    callback = SweepCallback(plan, len(trials), [trials[0].name])
    costs = []
    for trial, point in zip(trials, points, strict=True):
        write_result(run, trial.result("finished", numbers={"valid_nll": 1.0}))
        before = counting.counts["requests"]
        callback.on_trial_complete(0, [], SimpleNamespace(config={"point": point}))
        costs.append(counting.counts["requests"] - before)
    assert costs == costs[:1] * 4
    counts = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert counts == ["1/4", "2/4", "3/4", "4/4"]  # the first one was there before


def test_optuna_knows_what_is_done() -> None:
    optuna = pytest.importorskip("optuna")
    space = load_space("vae")
    point = {"vae.parse_weight": 5.0, "vae.beta": 1, "vae.tau_end": 2}
    point |= {"vae.decoder_width": 1}
    search = optuna_search(space, 0, [TrialResult("a", "finished", point, {}, score=12.0)])
    (known,) = search._ot_study.trials
    assert known.value == 12.0
    assert known.state == optuna.trial.TrialState.COMPLETE
    drawn = [search.suggest(str(number)) for number in range(20)]
    base = build(read_preset("digits"))
    for new in drawn:
        space.experiment(base, new)
