"""The command `bench`: its figures, and the images that it measures."""

import json
import math
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from npdraw_dist.bench import __main__ as bench
from npdraw_dist.bench import method, workload
from npdraw_dist.bench.workload import Workload, median_seconds
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data.rows import Rows

WIDTHS = ("prior.width", "vae.encoder_width", "vae.decoder_width")
SMALL = ["--bank.size", "20", "--prior.depth", "1", *(word for n in WIDTHS for word in (f"--{n}", "16"))]


def measured(folder: Path, *flags: str) -> dict[str, Any]:
    bench.main(["--quick", *SMALL, *flags, "--out", str(folder / "figures.json")])
    return dict(json.loads((folder / "figures.json").read_text()))


@pytest.mark.slow  # minutes; the other tests here measure sections
@pytest.mark.timeout(900)
def test_all_figures_of_the_whole_command(tmp_path: Path) -> None:
    figures = measured(tmp_path)
    assert all(not isinstance(value, dict | list) for value in figures.values())
    aims = [name for name in bench.AIMS if "gpu" not in name]
    if os.cpu_count() == 1:
        aims.remove("two_worker_ratio")
    for name in (*aims, "patches_per_s", "samples_per_s", "peak_rss_mb", "vae_hard_step_images_per_s"):
        assert 0 < figures[name] < math.inf, name
    assert figures["kmeans_objective_vs_sklearn"] < 1.05
    ratio = figures["kmeans_objective"] / figures["sklearn_objective"]
    assert figures["kmeans_objective_vs_sklearn"] == pytest.approx(ratio)
    rates = [v for name, v in figures.items() if re.fullmatch("training_.*_images_per_s", name)]
    assert figures["ray_loop_ratio"] == pytest.approx(rates[1] / rates[0])
    for name in ("data_wait_share", "vae_step_flops_utilization", "vae_step_memory_vs_dense"):
        assert figures[name] < 1, name


def test_only_the_sections_that_are_named_are_measured(tmp_path: Path) -> None:
    figures = measured(tmp_path, "--only", "parse")
    assert figures["sgemm_gflops"] > 0  # of `machine`, which says what the rest was measured on
    assert figures["parse_images_per_s"] > 0
    assert "patches_per_s" not in figures
    assert bench.chosen(" training, step") == ["machine", "step", "training"]
    assert bench.chosen(None) == list(bench.SECTIONS)


def test_objective_against_scipy() -> None:
    rng = np.random.default_rng(0)
    patches, centroids = rng.random((500, 25), np.float32), rng.random((7, 25), np.float32)
    expected = cdist(patches, centroids, "sqeuclidean").min(1).mean()
    assert method.objective(patches, centroids) == pytest.approx(expected, rel=1e-5)


def opened(monkeypatch: pytest.MonkeyPatch, shards: int, rows: int) -> tuple[Workload, list[int]]:
    """A workload from shards whose pixels are their numbers, and the order in which they were read."""
    reads: list[int] = []

    def read(value: int) -> Rows:
        reads.append(value)
        images = np.full((rows, 1, 28, 28), value, np.uint8)
        return Rows([str(i) for i in range(rows)], images, np.zeros(rows, np.int64))

    found = [SimpleNamespace(rows=rows, read=partial(read, value)) for value in range(shards)]
    monkeypatch.setattr(
        workload, "open_source", lambda data, seed: SimpleNamespace(shards=lambda split: found)
    )
    work = Workload(Experiment(), quick=True)
    assert len(work.images) > 0
    return work, reads


def test_measured_images_come_from_many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first shards of a sorted set do not represent it."""
    work, reads = opened(monkeypatch, 200, 500)
    assert len(reads) == workload.LEAST_SHARDS
    assert max(reads) > 100  # not the first ones
    assert work.images.shape == (workload.QUICK_IMAGES, 1, 28, 28)
    assert len(np.unique(work.images[:400, 0, 0, 0])) == workload.LEAST_SHARDS
    again, _ = opened(monkeypatch, 200, 500)
    np.testing.assert_array_equal(again.images, work.images)
    _, reads = opened(monkeypatch, 200, 50)  # small ones are read until there are enough images
    assert len(reads) == len(set(reads)) == workload.QUICK_IMAGES // 50
    work, reads = opened(monkeypatch, 3, 700)
    assert (sorted(reads), len(work.images)) == ([0, 1, 2], 2100)


def test_times_are_taken_in_turns() -> None:
    calls: list[str] = []
    found = median_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert min(found) >= 0
