"""Training on a stream: it finishes, and a worker that dies in mid-epoch changes no bit of the result."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from pyarrow import fs

from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.objective import Objective
from npdraw_dist.data.parses import Parses, RowRange, ShardFile, image_column
from npdraw_dist.pipeline import prior, stage_job
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import cluster
from npdraw_dist.training.feed import StreamFeed
from npdraw_dist.training.workers import Workers
from tests.helpers.runs import tiny

LOCAL = fs.LocalFileSystem()
MakeObjective = Callable[[Experiment, Any], Objective]


def dies_once(marker: Path) -> MakeObjective:
    """The prior's objective, that breaks in its third step, unless `marker` is there."""
    make = prior.make_objective

    def make_objective(experiment: Experiment, bank: Any) -> Objective:
        objective = make(experiment, bank)
        forward = objective.forward

        def failing(batch: Any, progress: float, generator: Any) -> Any:
            if progress >= 0.75 and not marker.exists():
                marker.touch()
                raise RuntimeError("a worker dies")
            return forward(batch, progress, generator)

        objective.forward = failing  # type: ignore[method-assign, assignment]
        return objective

    return make_objective


@pytest.mark.slow
@pytest.mark.ray
def test_a_streamed_prior_resumes_in_mid_epoch_bit_by_bit(
    local_ray: None,
    parsed: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = tiny(cache_mb=0)
    manifest = prior.run(experiment, parsed)
    assert "300 training images of 0.3 MB are streamed (data.cache_mb 0)" in capsys.readouterr().out
    assert np.isfinite(manifest["valid_nll"])
    assert manifest["images"] == 512

    again = Store(LOCAL, str(tmp_path / "again"))
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "parses").symlink_to(tmp_path / "run" / "parses")
    monkeypatch.setattr(prior, "make_objective", dies_once(tmp_path / "died"))
    resumed = prior.run(experiment, again)
    assert (tmp_path / "died").exists()
    assert resumed["images"] == 512  # of the whole stage, though it resumed after step 2

    last = f"{manifest['checkpoint']}/state.safetensors"
    assert resumed["checkpoint"] == manifest["checkpoint"]
    assert (tmp_path / "run" / "prior" / last).read_bytes() == (
        tmp_path / "again" / "prior" / last
    ).read_bytes()
    assert resumed["valid_nll"] == manifest["valid_nll"]
    records = (tmp_path / "again" / "prior" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["images_seen"] for record in records] == [256, 512]


def test_what_memory_holds_is_not_streamed() -> None:
    # A row is 28 * 28 + 36 * (1 + 2 + 2) = 964 bytes, so 1 MB holds 1,087.7 of them.
    for cache_mb, rows, streamed in ((1, 1087, False), (1, 1088, True), (0, 127, False)):  # 127: no batch
        experiment = tiny(cache_mb=cache_mb)
        assert stage_job.is_streamed(experiment, rows) is streamed


@pytest.mark.parametrize(("megabytes", "windows"), [(0, 48), (4, 45), (64, 2), (1000, 1)])
def test_a_window_has_so_many_megabytes(
    megabytes: float, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 files of 1,000 rows of 964 bytes; at least 4,096 rows, at most an epoch."""
    files = tuple(ShardFile(str(number), 1000) for number in range(200))
    monkeypatch.setattr(stage_job, "SHUFFLE_MB", megabytes)
    feed = stage_job.make_feed(Parses(LOCAL, files), tiny())
    assert isinstance(feed, StreamFeed)
    assert feed.windows == windows


def test_rows_of_a_stream_are_of_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 5,000 rows of 40 files of 1,000."""
    every = tuple(ShardFile(str(number), 1000) for number in range(40))
    monkeypatch.setattr(stage_job, "SHUFFLE_MB", 1)
    feed = stage_job.make_feed(Parses(LOCAL, every), tiny())
    assert isinstance(feed, StreamFeed)
    read: list[RowRange] = []

    def noted(pieces: Sequence[RowRange], *_: object) -> pa.Table:
        read.extend(pieces)
        return pa.table({"image": image_column(np.zeros((0, 1, 2, 2), np.uint8))})

    monkeypatch.setattr("npdraw_dist.data.parses.ray_runs", lambda: False)
    monkeypatch.setattr("npdraw_dist.data.parses.read_ranges", noted)
    list(feed.read(np.random.default_rng(0).permutation(len(feed.rows)), [(0, 5000)]))
    assert sum(piece.stop - piece.start for piece in read) == 5000
    assert 12 <= len({piece.path for piece in read}) <= 21


@pytest.mark.parametrize(
    ("cpus", "workers", "reading", "each"),
    [(2, 1, True, 1), (2, 1, False, 2), (3, 2, True, 1), (9, 2, True, 4)],
)
def test_a_cpu_is_left_to_read_where_the_workers_do_not_need_it(
    monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int, reading: bool, each: int
) -> None:
    node = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": float(cpus)}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    assert cluster.plan_workers(ScaleConfig(num_workers=workers), reading) == Workers(
        workers, workers, each, False
    )
    asked = ScaleConfig(num_workers=1, cpus_per_worker=cpus)
    assert cluster.plan_workers(asked, reading).cpus == cpus
    assert cluster.plan_workers(ScaleConfig(num_workers=cpus), reading=True).cpus == 1
    with pytest.raises(UserError, match=r"2 CPUs need .*\(lower --scale\.num_workers"):
        cluster.plan_workers(ScaleConfig(num_workers=cpus, cpus_per_worker=2, wait_s=0), reading)
