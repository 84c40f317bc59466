"""Faults in a training run, which must still end with the weights of an undisturbed run.

Each fault hits the prior on random parses: 8 steps, a checkpoint after each two.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.objective import Objective
from npdraw_dist.distributed.start import PREEMPTION_WATCHER
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.metrics_log import read_metrics
from tests.helpers.processes import until
from tests.helpers.runs import TINY, random_parses, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# The workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Fault = Callable[[], None]
Undisturbed = Callable[[int], Store]
Capture = pytest.CaptureFixture[str]
MakeObjective = Callable[[Experiment, Any], Objective]


def experiment(workers: int = 1, **scale: Any) -> Experiment:
    own = {"num_workers": workers, "cpus_per_worker": 1 if workers else None, **scale}
    return with_changes(tiny(), {"prior": {"images": 1024}, "scale": own})


def with_parses_of(store: Store, folder: Path) -> Store:
    """Another run folder with the same images and parses."""
    folder.mkdir()
    for name in ("data", "parses"):
        (folder / name).symlink_to(store.path(name))
    return Store(fs.LocalFileSystem(), str(folder))


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Returns the undisturbed run of so many workers. With one worker it is trained in this process."""

    @cache
    def run(workers: int) -> Store:
        store = random_parses(tmp_path_factory.mktemp("whole") / "run")
        prior.run(experiment(0 if workers == 1 else workers), store)
        return store

    return run


def breaks(marker: Path, share: float, rank: int, fault: Fault) -> MakeObjective:
    """The prior's objective; `fault` happens once on a rank, when `share` of the budget is seen.

    It waits for the checkpoint of half the budget, which Ray Train saves in the background.
    """
    make, saved = prior.make_objective, marker.parent / "broken/prior/checkpoint_000000004/progress.json"

    def make_objective(experiment: Experiment, bank: Any) -> Objective:
        import ray.train

        mine = ray.train.get_context().get_world_rank() == rank
        objective = make(experiment, bank)
        forward = objective.forward

        def failing(batch: Any, seen: float, generator: Any) -> Any:
            if mine and seen >= share and not marker.exists():
                until(saved.exists)
                marker.touch()
                fault()
            return forward(batch, seen, generator)

        objective.forward = failing  # type: ignore[method-assign, assignment]
        return objective

    return make_objective


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_in_mid_upload() -> None:
    """The process dies in the next upload of a checkpoint, after the first file."""
    import pyarrow.fs
    import ray.train.v2._internal.execution.storage as storage

    def half(source: str, destination: str, **_: Any) -> None:
        first = sorted(Path(source).iterdir(), reverse=True)[0]
        assert first.name == "state.safetensors"
        Path(destination).mkdir(parents=True, exist_ok=True)
        (Path(destination) / first.name).write_bytes(first.read_bytes()[:1000])
        kill()

    pyarrow.fs.copy_files = half
    storage._pyarrow_fs_copy_files = half  # type: ignore[assignment]


def kill_after_the_last_checkpoint() -> None:
    """The worker dies after the last checkpoint is uploaded, before it returns its summary."""
    from npdraw_dist.training import loop

    def end(run: loop.Run, *_: Any) -> None:
        last = Path(run.context.folder) / "checkpoint_000000008" / "progress.json"  # type: ignore[attr-defined]
        until(last.exists)
        kill()

    loop.Run.summary = end  # type: ignore[assignment,method-assign]


def rows(store: Store) -> list[dict[str, float]]:
    """The rows of the prior's metrics.jsonl without times, which differ between runs."""
    times = ("images_per_s", "data_wait_share")
    found = read_metrics(store.filesystem, store.path("prior"))
    return [{k: v for k, v in row.items() if k not in times} for row in found]


def events(store: Store) -> list[int]:
    """The images at which TensorBoard shows the prior's validations."""
    shown = EventAccumulator(store.path("prior"), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in shown.Scalars("valid/nll")]


def weights(store: Store) -> bytes:
    """The weights of the prior's selected checkpoint."""
    manifest = store.read_json("prior", "manifest.json")
    return Path(store.path("prior", manifest["checkpoint"], "state.safetensors")).read_bytes()


DIED = "ActorDiedError: "
FAULTS = [
    (1, kill_in_mid_upload, 4, DIED),
    (1, kill_after_the_last_checkpoint, 8, DIED),
    # The error of rank 1, or of rank 0 if that one notices first that its peer is gone.
    (2, kill, 4, ""),
    (2, hang, 4, "a worker did not answer within scale.timeout_s"),
]


@pytest.mark.parametrize(("workers", "fault", "resumes_at", "why"), FAULTS)
def test_a_worker_breaks(
    workers: int,
    fault: Fault,
    resumes_at: int,
    why: str,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    whole = undisturbed(workers)
    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "broke", 0.6, workers - 1, fault))
    broken = with_parses_of(whole, tmp_path / "broken")
    prior.run(experiment(workers, timeout_s=8), broken)
    assert (tmp_path / "broke").exists()
    out = capsys.readouterr().out
    assert f"prior: workers restart: {why}" in out
    assert f"prior: resumes from checkpoint_{resumes_at:09d}" in out
    assert weights(broken) == weights(whole)
    # The manifest and the metrics are complete too.
    manifest = broken.read_json("prior", "manifest.json")
    assert manifest["images"] == 1024
    assert min(manifest["images_per_s"], manifest["core_seconds"]) > 0
    assert rows(broken) == rows(whole)
    assert events(broken) == events(whole) == [256, 512, 768, 1024]


@pytest.mark.usefixtures("local_ray")
def test_a_streamed_prior_resumes_in_mid_epoch_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has 300 rows, and training resumes after 512."""
    streamed = with_changes(experiment(), {"data": {"cache_mb": 0}})
    whole = random_parses(tmp_path / "whole")
    prior.run(streamed, whole)
    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "broke", 0.6, 0, kill))
    broken = with_parses_of(whole, tmp_path / "broken")
    prior.run(streamed, broken)
    assert (tmp_path / "broke").exists()
    assert weights(broken) == weights(whole)
    assert rows(broken) == rows(whole)


def notice(deadline_s: float) -> Fault:
    """Marks the worker as Ray Train's watcher does when its node is drained."""

    def fault() -> None:
        from ray.train.v2._internal.execution.context import get_train_context
        from ray.train.v2.api.preemption import PreemptionInfo

        deadline_ms = int((time.time() + deadline_s) * 1000)
        node = ray.get_runtime_context().get_node_id()
        get_train_context().preemption_context.preemption_info = PreemptionInfo(deadline_ms, {node: [0]})

    return fault


def looks_at_each_step(make: MakeObjective) -> MakeObjective:
    """Lets workers look for a notice at each step; every two seconds would be too seldom for short steps."""

    def make_objective(experiment: Experiment, bank: Any) -> Objective:
        from npdraw_dist.distributed import context

        context.LOOK_EVERY_S = 0.0
        return make(experiment, bank)

    return make_objective


def test_a_notice_that_a_node_is_taken_away_saves_a_checkpoint(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The notice comes in step 5 of 8, where no checkpoint is due. The restart counts as no failure."""
    whole = undisturbed(1)
    monkeypatch.setenv(PREEMPTION_WATCHER, "1")
    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "hung", 0.6, 0, lambda: time.sleep(600)))
    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "noticed", 0.5, 0, notice(deadline_s=6)))
    monkeypatch.setattr(prior, "make_objective", looks_at_each_step(prior.make_objective))
    broken = with_parses_of(whole, tmp_path / "broken")
    prior.run(experiment(max_failures=0), broken)
    assert (tmp_path / "hung").exists()
    assert "prior: resumes from checkpoint_000000005" in capsys.readouterr().out
    assert weights(broken) == weights(whole)
    for found, expected in zip(rows(broken), rows(whole), strict=True):
        assert found == pytest.approx(expected, rel=1e-9)
    assert events(broken) == events(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own filesystem of 700 KiB: one checkpoint fits, a second one does not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "npdraw", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_loses_nothing(undisturbed: Undisturbed, small_disk: Path) -> None:
    whole = undisturbed(1)
    store = with_parses_of(whole, small_disk / "run")
    with pytest.raises(UserError, match=r"stage prior stopped because its storage failed \(.*No space left"):
        prior.run(experiment(max_failures=1), store)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    prior.run(experiment(), store)
    assert weights(store) == weights(whole)


def test_a_killed_driver_and_the_same_command(tiny_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "npdraw_dist.train", "--storage", str(tmp_path), "--name", "tiny", *TINY]
    run = tmp_path / "tiny"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (run / "vae" / "metrics.jsonl").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert not (run / "metrics.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = Path("model") / "model.safetensors"
    assert (run / model).read_bytes() == (tiny_run / model).read_bytes()
