"""What breaks under a training run, and that the run still ends, with the weights of an undisturbed one.

Each fault hits the prior on random parses: 8 steps, a checkpoint after each two.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pyarrow import fs
from ray._private.internal_api import memory_summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.objective import Objective
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.environment import PREEMPTION_WATCHER
from npdraw_dist.training.launch import SNAPSHOT, remove_broken_snapshot
from tests.helpers.runs import TINY, random_parses, tiny

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# The workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

LOCAL = fs.LocalFileSystem()
Fault = Callable[[], None]
MakeObjective = Callable[[Experiment, Any], Objective]


def experiment(workers: int = 1, **scale: Any) -> Experiment:
    values = tiny().model_dump(mode="json")
    values["prior"]["images"] = 1024
    values["scale"] |= {"num_workers": workers, "cpus_per_worker": 1, **scale}
    return Experiment.model_validate(values)


def with_parses_of(store: Store, folder: Path) -> Store:
    """Another run folder with the same parses."""
    folder.mkdir()
    (folder / "parses").symlink_to(store.path("parses"))
    return Store(LOCAL, str(folder))


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Store]:
    """Number of workers -> the undisturbed run of that many."""

    @cache
    def run(workers: int) -> Store:
        store = random_parses(tmp_path_factory.mktemp("whole") / "run")
        prior.run(experiment(workers), store)
        return store

    return run


def breaks(marker: Path, share: float, rank: int, fault: Fault) -> MakeObjective:
    """The prior's objective; `fault` happens once on a rank, when `share` of the budget is seen."""
    make = prior.make_objective

    def make_objective(experiment: Experiment, bank: Any) -> Objective:
        import ray.train

        mine = ray.train.get_context().get_world_rank() == rank
        objective = make(experiment, bank)
        forward = objective.forward

        def failing(batch: Any, seen: float, generator: Any) -> Any:
            if mine and seen >= share and not marker.exists():
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
    """The next checkpoint's upload ends after its first file, and so does the process."""
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
    """The worker dies when all is saved and reported, and only the end is left."""
    from npdraw_dist.training import loop

    def die(*_: Any) -> None:
        kill()

    loop.Run.summary = die  # type: ignore[assignment,method-assign]


def rows(store: Store) -> list[dict[str, float]]:
    """Of the prior's metrics.jsonl, without times, which no two runs share."""
    lines = Path(store.path("prior", "metrics.jsonl")).read_text().splitlines()
    times = ("images_per_s", "data_wait_share")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def events(store: Store) -> list[int]:
    """The images at which TensorBoard shows the prior's validations."""
    shown = EventAccumulator(store.path("prior"), size_guidance={"scalars": 0})
    shown.Reload()
    return [event.step for event in shown.Scalars("valid/nll")]


def weights(store: Store) -> bytes:
    """Of the last checkpoint of the prior."""
    manifest = store.read_json("prior", "manifest.json")
    return Path(store.path("prior", manifest["checkpoint"], "state.safetensors")).read_bytes()


SLOW = pytest.mark.slow
DIED = "died (its process was killed or crashed)"
FAULTS = [
    pytest.param(1, kill, 4, f"rank 0 {DIED}", marks=SLOW),
    (1, kill_in_mid_upload, 4, f"rank 0 {DIED}"),
    pytest.param(1, kill_after_the_last_checkpoint, 8, f"rank 0 {DIED}", marks=SLOW),
    # Rank 1, or 0 if that one notices first that its peer is gone.
    pytest.param(2, kill, 4, "rank", marks=SLOW),
    pytest.param(2, hang, 4, "rank 1 did not answer in time", marks=SLOW),
]


@pytest.mark.parametrize(("workers", "fault", "resumes_at", "why"), FAULTS)
def test_a_worker_breaks(
    workers: int,
    fault: Fault,
    resumes_at: int,
    why: str,
    undisturbed: Callable[[int], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    # Nothing of the figures is lost either.
    manifest = broken.read_json("prior", "manifest.json")
    assert manifest["images"] == 1024
    assert manifest["images_per_s"] > 0
    assert manifest["core_seconds"] > 0
    assert rows(broken) == rows(whole)
    assert events(broken) == events(whole) == [256, 512, 768, 1024]


@pytest.mark.slow  # four starts of the workers
def test_a_checkpoint_sets_the_count_of_failures_back(
    undisturbed: Callable[[int], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three failures, of which one without a new checkpoint is allowed. Then two in a row are too many."""
    whole = undisturbed(1)
    for number, share in enumerate((0.8, 0.6, 0.3)):
        make = breaks(tmp_path / f"broke{number}", share, 0, kill)
        monkeypatch.setattr(prior, "make_objective", make)
    broken = with_parses_of(whole, tmp_path / "broken")
    prior.run(experiment(max_failures=1), broken)
    said = capsys.readouterr().out
    assert said.count(f"rank 0 {DIED} on node") == 3
    assert said.count(" (failure 1 of at most 1 without a new ch") == 3
    assert weights(broken) == weights(whole)

    for number in (4, 5):
        make = breaks(tmp_path / f"broke{number}", 0.6, 0, kill)
        monkeypatch.setattr(prior, "make_objective", make)
    stopped = with_parses_of(whole, tmp_path / "stopped")
    with pytest.raises(
        UserError, match=rf"^stage prior stopped: rank 0 {re.escape(DIED)} on node .* used up; "
    ):
        prior.run(experiment(max_failures=1), stopped)
    assert "prior: stops: rank 0" in capsys.readouterr().out


def notice(deadline_s: float) -> Fault:
    """As Ray Train's watcher marks a worker whose node is drained."""

    def fault() -> None:
        from ray.train.v2._internal.execution.context import get_train_context
        from ray.train.v2.api.preemption import PreemptionInfo

        deadline_ms = int((time.time() + deadline_s) * 1000)
        node = ray.get_runtime_context().get_node_id()
        get_train_context().preemption_context.preemption_info = PreemptionInfo(deadline_ms, {node: [0]})

    return fault


@pytest.mark.slow
def test_a_notice_that_a_node_is_taken_away_saves_a_checkpoint(
    undisturbed: Callable[[int], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In step 5 of 8, where none is due. The restart at the deadline counts as no failure."""
    whole = undisturbed(1)
    monkeypatch.setenv(PREEMPTION_WATCHER, "1")
    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "hung", 0.6, 0, lambda: time.sleep(600)))
    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "noticed", 0.5, 0, notice(deadline_s=6)))
    broken = with_parses_of(whole, tmp_path / "broken")
    prior.run(experiment(max_failures=0), broken)
    assert (tmp_path / "hung").exists()
    assert [
        line for line in capsys.readouterr().out.splitlines() if "node of" in line or "resumes" in line
    ] == [
        "prior: the node of rank 0 is about to be taken away; a checkpoint is saved",
        "prior: workers restart: the node of rank 0 was taken away",
        "prior: resumes from checkpoint_000000005",
    ]
    assert weights(broken) == weights(whole)
    for found, expected in zip(rows(broken), rows(whole), strict=True):
        assert found == pytest.approx(expected, rel=1e-9)
    assert events(broken) == events(whole)


@pytest.mark.slow
def test_a_finished_training_whose_driver_was_killed_keeps_its_figures(
    undisturbed: Callable[[int], Store], tmp_path: Path
) -> None:
    """The driver died between the last checkpoint and the manifest."""
    whole = undisturbed(1)
    again = with_parses_of(whole, tmp_path / "again")
    shutil.copytree(whole.path("prior"), again.path("prior"))
    again.filesystem.delete_file(again.path("prior", "manifest.json"))
    prior.run(experiment(), again)
    before, after = (store.read_json("prior", "manifest.json") for store in (whole, again))
    for name in ("images", "images_per_s", "data_wait_share", "first_step_at", "first_wait_s", "checkpoint"):
        assert after[name] == before[name], name
    saved = json.loads(Path(again.path("prior", after["checkpoint"], "progress.json")).read_text())
    assert after["seconds"] > saved["clock"]["seconds"] > 0  # of the first driver, and of the second one
    assert rows(again) == rows(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_aside(
    undisturbed: Callable[[int], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = undisturbed(1)
    broken = with_parses_of(whole, tmp_path / "broken")

    def damage() -> None:
        newest = sorted(Path(broken.path("prior")).glob("checkpoint_0*"))[-1]
        content = bytearray((newest / "state.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "state.safetensors").write_bytes(content)
        kill()

    monkeypatch.setattr(prior, "make_objective", breaks(tmp_path / "broke", 0.8, 0, damage))
    prior.run(experiment(), broken)
    out = capsys.readouterr().out
    assert "prior: damaged, not used: " in out
    assert "checkpoint_000000006" in out
    assert "prior: resumes from checkpoint_000000004" in out
    assert weights(broken) == weights(whole)
    kept = {path.name for path in Path(broken.path("prior")).glob("checkpoint_*")}
    assert {"checkpoint_000000006_1", "checkpoint_000000008_1"} <= kept


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


@pytest.mark.slow
def test_a_full_disk_loses_nothing(undisturbed: Callable[[int], Store], small_disk: Path) -> None:
    whole = undisturbed(1)
    store = with_parses_of(whole, small_disk / "run")
    with pytest.raises(UserError, match=r"stage prior stopped because its storage failed \(.*No space left"):
        prior.run(experiment(max_failures=1), store)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    prior.run(experiment(), store)
    assert weights(store) == weights(whole)


@pytest.mark.slow
def test_a_full_object_store_changes_nothing(undisturbed: Callable[[int], Store], tmp_path: Path) -> None:
    """Ray spills to the disk what does not fit."""
    whole = undisturbed(1)
    held = [ray.put(np.full(16 << 20, number, np.uint8)) for number in range(12)]  # the store has 128 MB
    store = with_parses_of(whole, tmp_path / "run")
    prior.run(experiment(), store)
    address = ray.get_runtime_context().gcs_address  # the machine can run another Ray
    assert "Spilled" in memory_summary(address, stats_only=True)
    assert weights(store) == weights(whole)
    assert [int(ray.get(one)[-1]) for one in held] == list(range(12))


@pytest.mark.slow
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


@pytest.mark.parametrize("state", ["half", "gone", "other", "whole"])
def test_a_list_of_checkpoints_that_ray_cannot_read_is_removed(state: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_000000002").mkdir()
    (tmp_path / "checkpoint_000000006").mkdir()
    names = ["checkpoint_000000006", "checkpoint_000000002"]
    names += ["checkpoint_000000004"] if state == "gone" else []
    version = "1.0" if state == "other" else ray.__version__
    results = [{"checkpoint_dir_name": name} for name in names]
    text = json.dumps({"ray_version": version, "checkpoint_results": results})
    (tmp_path / SNAPSHOT).write_text(text[: len(text) // 2] if state == "half" else text)
    remove_broken_snapshot(LOCAL, str(tmp_path))
    assert (tmp_path / SNAPSHOT).exists() == (state == "whole")


def test_no_cluster_at_an_address_is_told_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "npdraw_dist.train", "--storage", str(tmp_path)]
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no Ray cluster answers at RAY_ADDRESS 127.0.0.1:9")
    assert time.monotonic() - started < 100
