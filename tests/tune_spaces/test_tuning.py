"""How a sweep divides its cluster, what stops its trials, what it records, which sweep it goes on with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from ray.exceptions import ActorDiedError

from npdraw_dist.config.load import build, read_preset
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import StorageFailed, UserError
from npdraw_dist.training.checkpoint import Criterion
from tests.helpers.counting import Counting
from tests.helpers.runs import Refused
from tests.helpers.spaces import load_space, plan_in
from tune_spaces import trial as trial_file
from tune_spaces.driver import claim
from tune_spaces.space import IMAGES, SCORE, SWEEP_METRICS
from tune_spaces.sweep import Options, main
from tune_spaces.trial import _Report, run_trial
from tune_spaces.trials import Plan, TrialResult, read_results, write_result
from tune_spaces.tuning import RecordingASHA, SweepCallback, divide, optuna_search


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_in(tmp_path, "smoke")


def test_another_sweep_of_the_same_name_is_refused(refused: Refused, plan: Plan, tmp_path: Path) -> None:
    claim(plan, Options(space="smoke"))
    same = ["--storage", str(tmp_path), "--name", "s"]
    assert "vae.images: 512 -> 640" in refused(main, "--space", "smoke", *same, "--vae.images", "640")
    assert "scheduler: asha -> none" in refused(main, "--space", "smoke", *same, "--scheduler", "none")


@pytest.mark.parametrize(
    ("nodes", "scale", "wanted", "trials", "expected"),
    [
        ((2,), {}, None, 12, (2, 1)),
        ((8,), {}, None, 2, (2, 4)),
        ((8,), {"num_workers": 2, "cpus_per_worker": 2}, None, 12, (2, 2)),
        ((8, 8), {"num_workers": 2}, 2, 12, (2, 4)),
        (((8, 2),), {"num_workers": 2}, None, 12, (1, 4)),
        ((0, 4), {}, None, 12, (4, 1)),
        (((8, 1), (8, 1), 64, 64), {}, None, 12, (2, 8)),  # the trials' workers are where the GPUs are
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


def test_asha_knows_the_trials_of_an_earlier_start() -> None:
    """The second trial of a new start is compared with those that ended before."""
    seen = [{"images": images, "score": 50.0} for images in (2_000, 4_000, 6_000)]
    controller: Any = None
    for history, action in (({}, "CONTINUE"), ({"old": seen, "older": seen}, "STOP")):
        asha = RecordingASHA(8_000, lambda trial, result: None, history)
        trial: Any = SimpleNamespace(trial_id="new")
        asha.on_trial_add(controller, trial)
        assert asha.on_trial_result(controller, trial, {"images": 2_000, "score": 60.0}) == action


def test_a_stopped_trial_is_recorded_with_its_settings(plan: Plan) -> None:
    SweepCallback(plan, 2).stopped(
        SimpleNamespace(config={"point": {"prior.depth": 1}}), {"score": 91.5, "images": 256}
    )
    (result,) = read_results(plan.run)
    assert (result.trial, result.status) == (plan.trial({"prior.depth": 1}).name, "stopped")
    assert result.settings == {"prior.depth": 2, "vae.decoder_width": 16}
    assert (result.score, result.numbers["images"]) == (91.5, 256)


@pytest.mark.parametrize(
    ("error", "at_once", "recorded"),
    [
        (StorageFailed("stage vae stopped because its storage failed"), [], []),
        (OSError(28, "No space left on device"), [], []),
        (ActorDiedError(), [], ["failed"]),  # a process of the trial's that is not one of its workers
        (UserError("the loss of stage vae turned non-finite"), ["failed"], ["failed"]),
    ],
)
def test_what_is_no_failure_of_a_trial_is_tried_again(
    error: Exception,
    at_once: list[str],
    recorded: list[str],
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tune starts it again some times, then the next start of the sweep does."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trial_file, "_train", fails)
    monkeypatch.setattr(trial_file, "RAY", {})
    config = {"point": {"prior.depth": 1}}
    with pytest.raises(type(error)):
        run_trial(config, plan, ())
    assert [result.status for result in read_results(plan.run)] == at_once
    ended: Any = SimpleNamespace(config=config, get_pickled_error=lambda: error)
    SweepCallback(plan, 2).on_trial_error(0, [], ended)  # Tune gives up
    assert [result.status for result in read_results(plan.run)] == recorded
    assert ("the same command resumes it" in capsys.readouterr().out) == (not recorded)


def test_the_end_of_a_trial_reads_its_own_result_only(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counting = Counting()
    plan = replace(plan, run=Store(fs.PyFileSystem(counting), str(tmp_path / "s")))
    points = [{"prior.depth": depth, "vae.decoder_width": width} for depth in (0, 1) for width in (0, 1)]
    trials = [plan.trial(point) for point in points]
    callback = SweepCallback(plan, len(trials), [trials[0].name])
    costs = []
    for trial, point in zip(trials, points, strict=True):
        write_result(plan.run, trial.result("finished", numbers={"valid_nll": 1.0}))
        before = counting.counts["requests"]
        callback.on_trial_complete(0, [], SimpleNamespace(config={"point": point}))
        costs.append(counting.counts["requests"] - before)
    assert costs == costs[:1] * 4
    counts = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert counts == ["1/4", "2/4", "3/4", "4/4"]  # the first one was there before


def test_tune_hears_of_validations_alone() -> None:
    """Not of a checkpoint between two of them, nor of a loss that was not finite."""
    callback = object.__new__(_Report)
    callback.metric = SWEEP_METRICS["valid_prior_nll"]
    heard: SimpleQueue[dict[str, Any]] = SimpleQueue()
    callback._training_actor_item_queue = heard
    key, worst = callback.metric.key, Criterion(callback.metric.key, "min").worst
    callback.after_report(None, [{key: worst}], None)
    callback.after_report(None, [{key: worst, "images_seen": 128}], None)
    callback.after_report(None, [{key: 30.0, "images_seen": 256}], None)
    assert heard.get_nowait() == {SCORE: callback.metric.sign * 30.0, IMAGES: 256}
    assert heard.empty()


def test_optuna_knows_what_is_done() -> None:
    optuna = pytest.importorskip("optuna")
    space = load_space("vae")
    point = {"vae.parse_weight": 5.0, "vae.beta": 1, "vae.tau_end": 2, "vae.decoder_width": 1}
    search = optuna_search(space, 0, [TrialResult("a", "finished", point, {}, {"score": 12.0})])
    (known,) = search._ot_study.trials
    assert known.value == 12.0
    assert known.state == optuna.trial.TrialState.COMPLETE
    base = build(read_preset("digits"))
    for number in range(20):
        space.experiment(base, search.suggest(str(number)))
