"""The capacity plan: its arithmetic by hand, what it prints, and a user's mistakes."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.bench import __main__ as bench
from npdraw_dist.bench import capacity as plan
from npdraw_dist.bench.capacity import Cluster, Stage
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment

FIGURES: dict[str, Any] = {
    "gpu": None,
    "cores": 2,
    "pixels": 784,
    "prepare_us_per_image": 20.0,
    "prepare_bytes_per_image": 400.0,
    "parse_shard_us_per_image": 40.0,
    "parse_bytes_per_image": 500.0,
    "ids_us_per_image": 2.0,
    "bank_patches_per_image": 18.0,
    "bank_driver_us_per_image": 1.0,
    "patches_per_s": 3e6,
    "kmeans_s": 0.5,
    "kmeans_patches": 1_000_000,
    **{f"{kind}_parameters": 1e6 for kind in ("prior", "vae")},
    **{f"{kind}_step_gflops_per_image": 0.4 for kind in ("prior", "vae")},
    **{f"{kind}_step_images_per_s": 500.0 for kind in ("prior", "vae")},
    **{f"{kind}_step_peak_mb": 100.0 for kind in ("prior", "vae")},
}
CLUSTER = Cluster(gpus=16, gpus_per_node=8, cores_per_gpu=4, node_gbit_per_s=8, gpu_gflops=1000, start_s=10)


def test_what_the_time_of_a_stage_goes_into() -> None:
    """64 cores, 16 GPUs, 2 nodes of 10^9 bytes/s, 10^8 images."""
    stage = Stage("x", core_us=6.4, driver_us=1, gpu_us=32, network_bytes=40, exchange_bytes=10, fixed_s=5)
    expected = {
        "cores": 10,
        "driver": 100,
        "GPUs": 200,
        "network": 1e8 * (40 / 2 + 10) / 1e9,
        "storage": 0,
        "reports": 0,
        "start": 15,
    }
    assert stage.seconds(1e8, CLUSTER) == pytest.approx(expected)


@pytest.mark.parametrize(("every", "reports"), [(10**6, 100), (60_000, 1000)])
def test_validation_and_storage_take_time_too(every: int, reports: int) -> None:
    """10^8 images; a report takes 1 s, and 512 images on 16 GPUs; a request in a thousand images 0.03 s."""
    found = Stage("x", gpu_us=1000, requests=1e-3, report_every=every, validated=512).seconds(1e8, CLUSTER)
    assert found["reports"] == pytest.approx(reports * (1 + 512 * 1e-3 / 3 / 16))
    assert found["storage"] == pytest.approx(3000)


def test_the_stages_of_the_figures() -> None:
    found = {stage.name: stage for stage in plan.stages(Experiment(), FIGURES, CLUSTER)}
    assert list(found) == ["prepare", "bank", "parse", "prior", "vae"]
    assert found["vae"].gpu_us == pytest.approx(0.4 / 1000 * 1e6)
    # Two nodes send 4 MB of gradients once in a step of 16 micro-batches of 64.
    assert found["vae"].exchange_bytes == pytest.approx(4e6 / (64 * 16))
    assert (found["vae"].report_every, found["vae"].validated) == (20_000, 512)
    # A task reads 41 shards of 2,048 images. The driver lists its three files twice, a thousand at once.
    assert found["parse"].requests == pytest.approx(6 / 1000 / 83_968)
    assert found["parse"].driver_us == found["bank"].driver_us == pytest.approx(7_000 / 83_968)
    assert found["parse"].driver_bytes == pytest.approx(2_000 / 83_968)
    assert found["parse"].core_us == pytest.approx(42)
    assert found["vae"].requests == found["vae"].driver_us == 0
    # 6 bounds of 128 images, 4 draws each, at a third of a step; a baseline has no temperatures to fit.
    assert found["vae"].fixed_s == pytest.approx(6 * 128 * 4 / 3 * found["vae"].gpu_us / 1e6)
    baseline = with_changes(Experiment(), {"model": {"kind": "vae"}})
    assert {s.name: s.fixed_s for s in plan.stages(baseline, FIGURES, CLUSTER)}["vae"] == 0
    assert found["bank"].core_us == pytest.approx(36 / 3)
    # Clustering 2,000,000 patches; the driver gets half as many again, of 25 bytes and a key of 8.
    assert found["bank"].fixed_s == pytest.approx(1.0 + 3e6 * (1 / 18 * 1e-6 + 33 / 1e9))
    assert found["parse"].network_bytes == pytest.approx(400 + 500 + 32)


def test_images_that_are_drawn_or_decoded_cost_what_that_takes() -> None:
    """A glyph takes 120 microseconds to draw, 8 to read again; figures without these count neither."""
    measured = {**FIGURES, "read_us_per_image": 120.0, "load_us_per_image": 8.0}
    before, found = (
        {stage.name: stage.core_us for stage in plan.stages(Experiment(), figures, CLUSTER)}
        for figures in (FIGURES, measured)
    )
    assert {name: found[name] - before[name] for name in found} == {
        **dict.fromkeys(("parse", "prior", "vae"), 0),
        "prepare": pytest.approx(120),
        "bank": pytest.approx(8),
    }


def test_a_vae_step_is_relaxed_at_the_start_and_then_hard() -> None:
    """Figures of older versions have the relaxed step alone."""
    experiment = with_changes(Experiment(), {"vae": {"images": 1000, "relaxed_images": 250}})
    measured = {**FIGURES, "gpu": "A100", "vae_step_images_per_s": 1000.0}
    both = {**measured, "vae_hard_step_images_per_s": 2000.0}
    old, new = (
        next(s.gpu_us for s in plan.stages(experiment, figures, CLUSTER) if s.name == "vae")
        for figures in (measured, both)
    )
    assert old == pytest.approx(1000)
    assert new == pytest.approx(0.25 * 1000 + 0.75 * 500)


def test_each_worker_does_once_what_a_file_needs() -> None:
    """Of a file of 10 shards at most 10 workers do it."""
    measured = {**FIGURES, "read_once_us_per_image": 3.0, "shards_of_a_file": 10.0}
    before, found, small = (
        plan.stages(Experiment(), figures, cluster)[0].core_us
        for figures, cluster in (
            (FIGURES, CLUSTER),
            (measured, CLUSTER),
            (measured, replace(CLUSTER, gpus=1)),
        )
    )
    assert CLUSTER.cores > 10
    assert found - before == pytest.approx(30)
    assert small - before == pytest.approx(12)


def test_a_large_sample_is_not_in_the_driver() -> None:
    """Of 20,000,000 patches of 25 bytes the driver holds those of the pilot's 100,000 images."""
    experiment = with_changes(Experiment(), {"bank": {"max_patches": 20_000_000}})
    large, small = (plan.stages(config, FIGURES, CLUSTER)[1] for config in (experiment, Experiment()))
    assert large.fixed_driver_bytes == pytest.approx(1.8e6 / 1.5 * (2 * 33 + 4 * 25))
    assert large.fixed_driver_bytes < small.fixed_driver_bytes


def test_few_images_have_few_patches_to_cluster() -> None:
    """30,000 images of 18 patches: 540,000 of the 2,000,000 that the bank takes at most."""
    few, many = (plan.stages(Experiment(), FIGURES, CLUSTER, images)[1] for images in (30_000, 1e9))
    assert few.fixed_driver_bytes == pytest.approx(many.fixed_driver_bytes * 0.27)
    assert few.fixed_s == pytest.approx(many.fixed_s * 0.27)
    assert many.fixed_s == plan.stages(Experiment(), FIGURES, CLUSTER)[1].fixed_s


@pytest.mark.parametrize(("patches", "seconds"), [(50_000, 1.42), (800_000, 12.28), (20_000_000, 150)])
def test_the_clusterings_of_a_measured_day_are_predicted(patches: int, seconds: float) -> None:
    """CPU seconds of one thread, 512 parts of glyphs: docs/results/2026-11-27-scale.md.

    The last one is 183 of a whole stage, less 33 for its reading and extraction.
    """
    figures: dict[str, Any] = {
        "kmeans_patches": 50_000,
        "kmeans_s": 1.42,
        "search_us_per_patch": 0.908,
        "torch_threads": 1,
    }
    assert plan.clustering_s(figures, patches) == pytest.approx(seconds, rel=0.1)
    assert plan.clustering_s({**figures, "torch_threads": 2}, patches) <= plan.clustering_s(figures, patches)


@pytest.mark.parametrize(("images", "each"), [(1e6, 2_048), (5e6, 4_096), (1e9, 83_968), (math.inf, 83_968)])
def test_shards_are_merged_where_there_are_many(images: float, each: int) -> None:
    """5,000,000 images are 2,441 shards, more than twice the 1,024 that stay as they are."""
    assert plan.images_of_a_task(Experiment(), images) == each
    prepare, *_ = plan.stages(Experiment(), FIGURES, CLUSTER, images)
    assert prepare.driver_us == pytest.approx(7_000 / each)


def test_cores_that_share_what_they_have_take_longer_together() -> None:
    alone = {stage.name: stage.core_us for stage in plan.stages(Experiment(), FIGURES, CLUSTER)}
    shared = {**FIGURES, "parse_images_per_s_of_a_core": 1000.0, "parse_images_per_s": 1250.0}
    found = {stage.name: stage.core_us for stage in plan.stages(Experiment(), shared, CLUSTER)}
    assert FIGURES["cores"] == 2
    for name in ("prepare", "bank", "parse"):
        assert found[name] == pytest.approx(1.6 * alone[name])
    better = {**shared, "parse_images_per_s": 2100.0}  # by chance
    assert plan.stages(Experiment(), better, CLUSTER)[0].core_us == alone["prepare"]


def test_figures_without_the_time_of_a_search_are_scaled() -> None:
    assert plan.clustering_s(FIGURES, 20_000_000) == pytest.approx(20 * FIGURES["kmeans_s"])


def test_the_measured_machine_trains_on_its_cores() -> None:
    """Two cores, at 500 images/s of a step; no storage is far and no node exchanges anything."""
    here = Cluster.of_machine(FIGURES)
    found = {stage.name: stage for stage in plan.stages(Experiment(), FIGURES, here)}
    assert (here.nodes, here.cores) == (1, 2)
    assert found["vae"].seconds(1e6, here)["GPUs"] == pytest.approx(2000)
    assert found["vae"].exchange_bytes == 0
    assert found["parse"].seconds(1e6, here)["cores"] == pytest.approx(21)
    assert found["parse"].seconds(1e6, here)["storage"] == 0


def test_the_plan_of_the_measured_machine_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(FIGURES))
    bench.main(["--plan", "--images", "3e5", "--gpus", "0", "--from", str(file)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "300,000 images on the measured machine, 2 cores" in printed
    assert "training" in printed  # what most of the time goes into
    assert "GPU" not in printed


@pytest.mark.parametrize(("size", "gpus", "batch"), [(128, 1, 128), (128, 64, 4096), (8192, 64, 8192)])
def test_each_gpu_has_a_micro_batch_of_every_step(size: int, gpus: int, batch: int) -> None:
    experiment = Experiment.model_validate({"train": {"batch_size": size, "micro_batch": 64}})
    cluster = Cluster(gpus=gpus, gpus_per_node=1)
    assert plan.global_batch(experiment, "vae", cluster) == batch
    found = {stage.name: stage for stage in plan.stages(experiment, FIGURES, cluster)}
    assert found["vae"].exchange_bytes == pytest.approx(2 * (gpus - 1) / gpus * 4e6 / batch)


def test_a_measured_gpu_is_taken_as_it_is() -> None:
    found = {s.name: s for s in plan.stages(Experiment(), FIGURES | {"gpu": "X"}, CLUSTER)}
    assert found["prior"].gpu_us == pytest.approx(2000)


def test_one_node_exchanges_nothing() -> None:
    one = plan.stages(Experiment(), FIGURES, Cluster(gpus=8))
    assert all(stage.exchange_bytes == 0 for stage in one)


def test_the_driver_that_first_fills_a_node() -> None:
    found = [Stage("a", driver_bytes=10, fixed_driver_bytes=12e9), Stage("b", driver_bytes=8), Stage("c")]
    name, images = plan.driver_limit(found, Cluster(gpus=1, node_memory_gb=512))
    assert (name, images) == ("a", pytest.approx(50e9))


def test_errors_are_of_the_larger_sizes() -> None:
    """10 images give a start of 4 s; of two cores one parses, at 40 + 2 microseconds an image."""
    measured = {"scale_parse_10_wall_s": 4 + 10 * 42e-6, "scale_parse_1000000_wall_s": 40.0}
    found = plan.plan_errors({**FIGURES, **measured})
    assert found == {"plan_error_1000000": pytest.approx((4 + 42) / 40 - 1)}


def test_the_parses_of_a_measured_day_are_predicted() -> None:
    """Two cores, 10,000, 60,000 and 600,000 images through Ray, as in docs/results/2026-11-25-data.md."""
    measured = {10_000: 10_000 / 2_620, 60_000: 60_000 / 9_270, 600_000: 600_000 / 22_800}
    walls = {f"scale_parse_{size}_wall_s": seconds for size, seconds in measured.items()}
    figures = {**FIGURES, **walls, "parse_shard_us_per_image": 35.6}
    assert all(abs(error) < 0.15 for error in plan.plan_errors(figures).values())


def test_the_plan_of_a_file_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(FIGURES))
    totals = []
    for images in ("1e9", "2e9"):
        bench.main(["--plan", "--images", images, "--gpus", "64", "--from", str(file)])
        printed = capsys.readouterr().out
        assert f"{float(images):,.0f} images on 64 GPUs" in printed
        assert "Assumed" in printed
        assert "a global batch of 1,024 (train.batch_size is 16;" in " ".join(printed.split())
        hours = re.search(r"([\d.]+) hours in all", printed)
        assert hours
        totals.append(float(hours[1]))
    assert totals[1] == pytest.approx(2 * totals[0], rel=0.1)
