"""The command `bench`: its figures, what they are measured on, and the capacity plan, by hand."""

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
from npdraw_dist.bench import clustering, plan, sections, workload
from npdraw_dist.bench.plan import Cluster, Stage
from npdraw_dist.bench.workload import Workload, median_seconds
from npdraw_dist.config.load import with_changes
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
    aims = [name for name in sections.AIMS if not name.startswith("serve_") and "gpu" not in name]
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
    assert sections.chosen(" serve, step") == ["machine", "step", "serve"]
    assert set(sections.SECTIONS) - set(sections.chosen(None)) == {"serve"}


def test_objective_against_scipy() -> None:
    rng = np.random.default_rng(0)
    patches, centroids = rng.random((500, 25), np.float32), rng.random((7, 25), np.float32)
    expected = cdist(patches, centroids, "sqeuclidean").min(1).mean()
    assert clustering.objective(patches, centroids) == pytest.approx(expected, rel=1e-5)


def opened(monkeypatch: pytest.MonkeyPatch, shards: int, rows: int) -> tuple[Workload, list[int]]:
    """The workload of shards whose pixels are their numbers, and the order in which they were read."""
    reads: list[int] = []

    def read(value: int) -> Rows:
        reads.append(value)
        images = np.full((rows, 1, 28, 28), value, np.uint8)
        return Rows([str(i) for i in range(rows)], images, np.zeros(rows, np.int64))

    found = [SimpleNamespace(rows=rows, read=partial(read, value)) for value in range(shards)]
    monkeypatch.setattr(
        workload, "open_source", lambda data, seed: SimpleNamespace(shards=lambda split: found)
    )
    return workload.open_workload(Experiment(), quick=True), reads


def test_what_is_measured_on_is_of_many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sorted set is not taken for its first shards."""
    work, reads = opened(monkeypatch, 200, 500)
    assert len(reads) == workload.LEAST_SHARDS
    assert reads == sorted(reads)  # as a worker reads them
    assert max(reads) > 100  # not the first ones
    assert work.images.shape == (workload.QUICK_IMAGES, 1, 28, 28)
    assert len(np.unique(work.images[:400, 0, 0, 0])) == workload.LEAST_SHARDS
    again, _ = opened(monkeypatch, 200, 500)
    np.testing.assert_array_equal(again.images, work.images)
    _, reads = opened(monkeypatch, 200, 50)  # small ones are read until there are enough images
    assert len(reads) == len(set(reads)) == workload.QUICK_IMAGES // 50
    work, reads = opened(monkeypatch, 3, 700)
    assert (reads, len(work.images)) == ([0, 1, 2], 2100)


def test_times_are_taken_in_turns() -> None:
    calls: list[str] = []
    found = median_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert min(found) >= 0


FIGURES: dict[str, Any] = {
    **{"gpu": None, "cores": 2, "pixels": 784, "ids_us_per_image": 2.0},
    **{"read_us_per_image": 120.0, "load_us_per_image": 8.0},
    **{"prepare_us_per_image": 20.0, "prepare_bytes_per_image": 400.0},
    **{"parse_shard_us_per_image": 40.0, "parse_bytes_per_image": 500.0},
    **{"parse_images_per_s": 2000.0, "parse_images_per_s_of_a_core": 1000.0, "stream_us_per_image": 3.0},
    **{"bank_patches_per_image": 18.0, "patches_per_s": 3e6, "kmeans_s": 0.5, "kmeans_patches": 1_000_000},
    **{f"{kind}_parameters": 1e6 for kind in ("prior", "vae")},
    **{f"{kind}_step_gflops_per_image": 0.4 for kind in ("prior", "vae")},
    **{f"{kind}_step_images_per_s": 500.0 for kind in ("prior", "vae")},
}
CLUSTER = Cluster(gpus=16, gpus_per_node=8, cores_per_gpu=4, node_gbit_per_s=8, gpu_gflops=1000, start_s=10)


def stages(figures: dict[str, Any] = FIGURES, images: float = 1e9, **changes: Any) -> dict[str, Stage]:
    found = plan.stages(with_changes(Experiment(), changes), figures, CLUSTER, images)
    return {stage.name: stage for stage in found}


def test_what_the_time_of_a_stage_goes_into() -> None:
    """64 cores, 16 GPUs, 2 nodes of 10^9 bytes/s, 10^8 images."""
    stage = Stage("x", core_us=6.4, gpu_us=32, network_bytes=40, fixed_s=5)
    expected = {"cores": 10, "GPUs": 200, "network": 1e8 * 40 / 2 / 1e9, "the rest": 15}
    assert stage.seconds(1e8, CLUSTER) == pytest.approx(expected)


def test_the_stages_of_the_figures() -> None:
    found = stages()
    assert list(found) == ["prepare", "bank", "parse", "prior", "vae"]
    assert found["prepare"].core_us == pytest.approx(120 + 20 + 2)
    assert found["bank"].core_us == pytest.approx(8 + 36 / 3)
    assert found["bank"].fixed_s == pytest.approx(1.0)  # 2,000,000 patches
    assert stages(images=30_000)["bank"].fixed_s == pytest.approx(0.27)  # that have 540,000
    assert found["parse"].core_us == pytest.approx(42)
    slower, better = {**FIGURES, "parse_images_per_s": 1250.0}, {**FIGURES, "parse_images_per_s": 2100.0}
    assert stages(slower)["parse"].core_us == pytest.approx(1.6 * 42)  # cores that share what they have
    assert stages(better)["parse"].core_us == pytest.approx(42)  # by chance
    assert found["parse"].network_bytes == pytest.approx(400 + 500)
    assert found["vae"].gpu_us == pytest.approx(0.4 / 1000 * 1e6)
    # Two nodes send 4 MB of gradients once each in a step of 16 micro-batches of 64.
    assert found["vae"].network_bytes == pytest.approx(500 + 2 * 4e6 / (64 * 16))
    assert found["vae"].fixed_s == 1000  # as many validations as a stage has at most
    assert stages(images=100_000)["vae"].fixed_s == 5  # every 20,000 images


def test_a_stage_that_streams_takes_cores_and_requests() -> None:
    """Rows of 784 + 36 * 5 bytes, in files of 8,192: a read each, and a footer for each of 16 GPUs."""
    found = stages(images=8e6, data={"source": "mnist", "path": "x"})
    assert found["vae"].core_us == found["prior"].core_us == pytest.approx(3)
    files = math.ceil(8e6 / 8192)
    assert found["vae"].requests == files + 16 * files
    assert stages(images=8e5, data={"source": "mnist", "path": "x"})["vae"].requests == 0  # fits the memory
    larger = stages(images=8e6, data={"source": "mnist", "path": "x", "shard_rows": 10**6})
    assert larger["vae"].requests == math.ceil(8e6 * (784 + 36 * 5) / (12 << 20)) + 8 * 8


def test_a_measured_gpu_takes_what_it_took_with_relaxed_and_with_hard_draws() -> None:
    rates = {"vae_step_images_per_s": 1000.0, "vae_hard_step_images_per_s": 2000.0}
    found = stages({**FIGURES, "gpu": "A100", **rates}, vae={"images": 1000, "relaxed_images": 250})
    assert found["prior"].gpu_us == pytest.approx(2000)
    assert found["vae"].gpu_us == pytest.approx(0.25 * 1000 + 0.75 * 500)


def test_each_gpu_has_a_micro_batch_of_every_step() -> None:
    experiment = Experiment.model_validate({"train": {"batch_size": 128, "micro_batch": 64}})
    found = [plan.global_batch(experiment, "vae", Cluster(gpus)) for gpus in (1, 64)]
    assert found == [128, 4096]


def test_the_printed_plan_grows_with_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, totals = tmp_path / "bench.json", []
    file.write_text(json.dumps(FIGURES))
    for images in ("1e9", "2e9"):
        bench.main(["--plan", "--from", str(file), "--images", images, "--gpus", "64"])
        out = " ".join(capsys.readouterr().out.split())
        assert f"{float(images):,.0f} images on 64 GPUs" in out
        hours = re.search(r"([\d.]+) hours in all", out)
        assert hours
        totals.append(float(hours[1]))
    assert totals[1] == pytest.approx(2 * totals[0], rel=0.2)
    bench.main(["--plan", "--from", str(file), "--images", "3e5", "--gpus", "0"])
    out = capsys.readouterr().out
    assert "300,000 images" in out
    assert "GPU" not in out
