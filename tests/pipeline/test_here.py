"""`scale.num_workers 0`: a run in this process, without Ray, is the run of one worker."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.data.tasks import AT_ONCE, map_items
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.checkpoint import KEPT
from npdraw_dist.training.context import RunContext, run_here
from npdraw_dist.training.loop import Run
from tests.helpers.counting import Counting
from tests.helpers.rows import open_parses, stream
from tests.helpers.runs import HERE, TINY, random_parses, tiny

# Python without Ray: to import it fails.
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from npdraw_dist import train
train.main(sys.argv[1:])
print("imported:", *sorted({"sklearn", "torchvision"} & sys.modules.keys()))
"""


def experiment(**changes: Any) -> Experiment:
    return with_changes(tiny(), {"scale": {"num_workers": 0}}, changes)


def test_a_whole_run_needs_no_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, "--storage", str(tmp_path), "--name", "here", *TINY, *HERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "imported:\n" in done.stdout  # what takes as long to import as torch, for little
    run = tmp_path / "here"
    assert {"bank", "parses", "prior", "vae", "model", "metrics.json", "samples.png"} <= {
        path.name for path in run.iterdir()
    }
    for stage in ("prior", "vae"):
        assert len(list((run / stage).glob("checkpoint_*/state.safetensors"))) == 2
        assert len(list((run / stage).glob("events.out.tfevents.*"))) == 2  # settings, and one start
        assert json.loads((run / stage / "manifest.json").read_text())["images_per_s"] > 0
    assert re.search(r"^vae: this process, \d+ threads?, a global batch of 128", done.stdout, re.M)


class Begun(Exception):
    pass


@pytest.mark.parametrize(("address", "workers"), [(None, 0), ("10.0.0.1:6379", "1:2")])
def test_the_default_command_is_here_unless_a_cluster_is_named(
    address: str | None, workers: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit` sets RAY_ADDRESS."""

    def begin(found: Experiment, *_: Any) -> None:
        raise Begun(found.scale.num_workers)

    monkeypatch.setattr("npdraw_dist.pipeline.run.unfinished", begin)
    monkeypatch.setattr("npdraw_dist.training.workers.ray_runs", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(Begun, match=f"^{workers}$"):
        train.main(["--storage", str(tmp_path)])


TIMES = ("images_per_s", "data_wait_share", "recent/images_per_s")


def without_times(run: Path, stage: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / stage / file).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.ray
def test_it_is_the_run_of_one_worker_bit_by_bit(
    tiny_run: Path, tmp_path: Path, threads_of_a_worker: None
) -> None:
    train.main(["--storage", str(tmp_path), "--name", "here", *TINY, *HERE])
    run = tmp_path / "here"
    for name in ("bank/bank.safetensors", "model/model.safetensors", "samples.png"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes(), name
    for stage in ("prior", "vae"):
        assert without_times(run, stage) == without_times(tiny_run, stage)
        losses = without_times(run, stage, "training.jsonl")
        assert losses == without_times(tiny_run, stage, "training.jsonl")
        assert [row["images_seen"] for row in losses] == [128, 256, 384, 512]
        said = [
            [line[21:] for line in (folder / "log.txt").read_text().splitlines()]
            for folder in (run, tiny_run)
        ]
        lines = [[line for line in text if line.startswith(f"{stage}: after ")] for text in said]
        assert lines[0] == lines[1]
        assert len(lines[0]) == 2
        of_tags = [EventAccumulator(str(folder / stage)).Reload().Tags() for folder in (run, tiny_run)]
        assert of_tags[0] == of_tags[1]
        assert {"bank", "samples"} <= set(of_tags[0]["images"])
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (run, tiny_run)]
    here, there = ({k: v for k, v in found.items() if k.startswith("test/")} for found in numbers)
    assert here == there


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_of_ray_goes_on_here_and_the_reverse(
    tiny_run: Path, tmp_path: Path, threads_of_a_worker: None
) -> None:
    """From the first of two checkpoints, to the same model; the other way from there for the VAE."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "tiny"))
    for stage in ("prior", "vae"):
        shutil.rmtree(sorted((run / stage).glob("checkpoint_0*"))[-1])
        (run / stage / "manifest.json").unlink()
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    again = ["--storage", str(tmp_path), "--name", "tiny", *TINY]
    train.main([*again, *HERE, "--stages", "prior"])
    train.main(again)
    for name in ("model/model.safetensors", "samples.png"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes(), name
    assert without_times(run, "prior") == without_times(tiny_run, "prior")


class Killed(Exception):
    pass


@pytest.mark.parametrize("cache_mb", [1024, 0])
def test_a_killed_stage_goes_on_at_its_last_checkpoint(
    cache_mb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In memory and streamed."""
    asked = experiment(data={"cache_mb": cache_mb})
    whole, killed = random_parses(tmp_path / "whole"), random_parses(tmp_path / "killed")
    manifest = prior.run(asked, whole)
    original = Run.update

    def die_at_three(self: Run, step: int, *rest: Any) -> None:
        if step == 3:
            raise Killed
        original(self, step, *rest)

    monkeypatch.setattr(Run, "update", die_at_three)
    with pytest.raises(Killed):
        prior.run(asked, killed)
    monkeypatch.setattr(Run, "update", original)
    Path(killed.path("prior", ".checkpoint-half")).mkdir()
    again = prior.run(asked, killed)
    printed = capsys.readouterr().out
    assert "prior: resumes from checkpoint_000000002" in printed
    assert ("are streamed" in printed) == (cache_mb == 0)
    assert again["valid_nll"] == manifest["valid_nll"]
    states = [
        Path(store.path("prior", manifest["checkpoint"], "state.safetensors")) for store in (whole, killed)
    ]
    assert states[0].read_bytes() == states[1].read_bytes()
    assert not list(Path(killed.path("prior")).glob(".checkpoint-*"))


def test_the_best_checkpoints_and_the_last_stay(tmp_path: Path) -> None:
    asked = experiment(
        prior={"images": 1024, "learning_rate": 3.0},
        train={"eval_every_images": 128, "patience": 0},
    )
    store = random_parses(tmp_path)
    manifest = prior.run(asked, store)
    rows = without_times(tmp_path, "prior")
    assert len(rows) == 8
    best = sorted(rows, key=lambda row: row["valid/nll"])[:KEPT]
    assert rows[-1] not in best  # training gets worse here
    kept = {path.name for path in (tmp_path / "prior").glob("checkpoint_0*")}
    assert kept == {f"checkpoint_{int(row['step']):09d}" for row in [*best, rows[-1]]}
    assert manifest["checkpoint"] == f"checkpoint_{int(best[0]['step']):09d}"


def test_a_store_that_is_not_local(tmp_path: Path) -> None:
    local = random_parses(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    far = Store(fs.PyFileSystem(Counting()), str(tmp_path / "b"))
    assert prior.run(experiment(), far)["valid_nll"] == prior.run(experiment(), local)["valid_nll"]
    states = [sorted((tmp_path / name / "prior").glob("checkpoint_0*/state.safetensors")) for name in "ab"]
    assert [path.read_bytes() for path in states[0]] == [path.read_bytes() for path in states[1]]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = random_parses(tmp_path)
    manifest = prior.run(experiment(), store)
    state = tmp_path / "prior" / "checkpoint_000000004" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    (tmp_path / "prior" / "manifest.json").unlink()
    again = prior.run(experiment(), store)
    printed = capsys.readouterr().out
    assert "prior: damaged, not used" in printed
    assert "prior: resumes from checkpoint_000000002" in printed
    assert again["valid_nll"] == manifest["valid_nll"]
    assert again["checkpoint"] == "checkpoint_000000004_1"  # the damaged one keeps its name


def test_another_process_that_trains_the_run_is_waited_for(tmp_path: Path) -> None:
    from npdraw_dist.core.lease import Lease

    store = random_parses(tmp_path)
    quick = experiment(scale={"timeout_s": 1})
    with (
        Lease(store.filesystem, store.path("prior"), "stage prior"),
        pytest.raises(UserError, match="is in use by"),
    ):
        prior.run(quick, store)


def test_rows_are_streamed_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_parses(tmp_path)
    parses = open_parses(store.filesystem, store.path("parses", "train"))
    monkeypatch.setattr("npdraw_dist.data.parses.ray_runs", lambda: False)
    monkeypatch.setattr("npdraw_dist.data.parses.READ_ROWS", 32)
    ranges = [(140, 300), (0, 7), (7, 7), (100, 170)]
    found = Batch.cat(list(stream(parses, ranges)))
    expected = Batch.cat([parses.at(np.arange(*bounds)) for bounds in ranges if bounds[0] < bounds[1]])
    assert torch.equal(found.what, expected.what)
    assert torch.equal(found.whether, expected.whether)
    assert list(stream(parses, [])) == []


def with_two_threads(mapped: Callable[[], list[Any]]) -> list[Any]:
    """What `mapped` gives where torch has two threads, which it must leave as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = mapped()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    return found


def test_shards_are_read_here_with_the_threads_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.tasks.ray_runs", lambda: False)

    def work(number: int) -> tuple[int, int]:
        if number == 1:
            raise UserError("no")
        return number, torch.get_num_threads()

    found = with_two_threads(lambda: list(map_items(range(3), work)))
    assert [found[0], found[2]] == [(0, 1), (2, 1)]
    assert isinstance(found[1], UserError)


def test_a_store_is_asked_for_several_shards_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.tasks.ray_runs", lambda: False)
    together = threading.Barrier(AT_ONCE)

    def work(number: int) -> tuple[int, int]:
        together.wait(timeout=30)  # goes on when as many shards are worked on
        if number == 1:
            raise UserError("no")
        return number, torch.get_num_threads()

    found = with_two_threads(lambda: list(map_items(range(2 * AT_ONCE), work, folders=[None])))
    done = [result for result in found if not isinstance(result, UserError)]
    assert sorted(done) == [(number, 1) for number in range(2 * AT_ONCE) if number != 1]
    assert len(found) == 2 * AT_ONCE


def test_no_more_shards_are_read_once_the_rest_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.tasks.ray_runs", lambda: False)
    begun: list[int] = []
    found = map_items(range(100), begun.append, folders=[None])
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2 * AT_ONCE


def test_a_gpu_that_is_not_there_is_told_before_anything_is_done(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refused(train.main, "--storage", str(tmp_path), *TINY, *HERE, "--scale.use_gpu", "true")
    assert "scale.use_gpu is true, but this machine has no GPU" in error
    assert not list(tmp_path.iterdir())


def test_the_context_says_what_it_does(tmp_path: Path) -> None:
    shown: list[Any] = []

    class Screen:
        def show(self, images_seen: int, images_per_s: float, note: str) -> None:
            shown.append((images_seen, note))

        def record(self, row: dict[str, float]) -> None:
            shown.append(row)

        def say(self, line: str) -> None:
            shown.append(line)

    from npdraw_dist.pipeline.stage_job import CRITERIA

    best = CRITERIA["prior"]
    context = RunContext(fs.LocalFileSystem(), str(tmp_path), torch.device("cpu"), best, Screen())
    assert (context.rank, context.world_size, context.must_save()) == (0, 1, False)
    assert context.restore(lambda folder: {}) is None
    context.say("a line")
    context.show_progress(16, 1.0, lambda: "loss 2.00")
    context.show_progress(32, 1.0, lambda: pytest.fail("nobody looks, so no GPU is waited for"))
    context.log({"step": 1, "images_seen": 16, "recent/loss": 2.0})
    assert shown == ["a line", (16, "loss 2.00"), {"step": 1, "images_seen": 16, "recent/loss": 2.0}]
    assert (tmp_path / "training.jsonl").exists()
    np.testing.assert_array_equal(context.sum(torch.ones(2)), [1, 1])


def test_the_random_state_of_the_caller_stays(tmp_path: Path) -> None:
    from npdraw_dist.pipeline.stage_job import CRITERIA

    def work(job: int, context: RunContext) -> int:
        torch.manual_seed(job)
        return job + context.rank

    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    best = CRITERIA["prior"]
    context = RunContext(fs.LocalFileSystem(), str(tmp_path), torch.device("cpu"), best, None)  # type: ignore[arg-type]
    assert run_here(work, 3, context, ScaleConfig(num_workers=0)) == 3
    assert torch.equal(torch.rand(3), drawn)
