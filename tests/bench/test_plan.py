"""The capacity plan: its arithmetic by hand, and what it prints. Mistakes: tests/test_mistakes.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.bench import __main__ as bench
from npdraw_dist.bench import plan
from npdraw_dist.bench.plan import Cluster, Stage
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment

FIGURES: dict[str, Any] = {
    "gpu": None,
    "cores": 2,
    "pixels": 784,
    "read_us_per_image": 120.0,
    "load_us_per_image": 8.0,
    "prepare_us_per_image": 20.0,
    "prepare_bytes_per_image": 400.0,
    "parse_shard_us_per_image": 40.0,
    "parse_bytes_per_image": 500.0,
    "parse_images_per_s": 2000.0,
    "parse_images_per_s_of_a_core": 1000.0,
    "ids_us_per_image": 2.0,
    "bank_patches_per_image": 18.0,
    "patches_per_s": 3e6,
    "kmeans_s": 0.5,
    "kmeans_patches": 1_000_000,
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
    assert found["parse"].network_bytes == pytest.approx(400 + 500)
    assert found["vae"].gpu_us == pytest.approx(0.4 / 1000 * 1e6)
    # Two nodes send 4 MB of gradients once each in a step of 16 micro-batches of 64.
    assert found["vae"].network_bytes == pytest.approx(500 + 2 * 4e6 / (64 * 16))
    assert found["vae"].fixed_s == 1000  # as many validations as a stage has at most
    assert stages(images=100_000)["vae"].fixed_s == 5  # every 20,000 images


def test_cores_that_share_what_they_have_take_longer_together() -> None:
    shared = {**FIGURES, "parse_images_per_s": 1250.0}
    assert stages(shared)["parse"].core_us == pytest.approx(1.6 * stages()["parse"].core_us)
    better = {**FIGURES, "parse_images_per_s": 2100.0}  # by chance
    assert stages(better)["parse"].core_us == stages()["parse"].core_us


def test_a_measured_gpu_takes_what_it_took_with_relaxed_and_with_hard_draws() -> None:
    measured = {
        **FIGURES,
        "gpu": "A100",
        "vae_step_images_per_s": 1000.0,
        "vae_hard_step_images_per_s": 2000.0,
    }
    found = stages(measured, vae={"images": 1000, "relaxed_images": 250})
    assert found["prior"].gpu_us == pytest.approx(2000)
    assert found["vae"].gpu_us == pytest.approx(0.25 * 1000 + 0.75 * 500)


@pytest.mark.parametrize(("size", "gpus", "batch"), [(128, 1, 128), (128, 64, 4096), (8192, 64, 8192)])
def test_each_gpu_has_a_micro_batch_of_every_step(size: int, gpus: int, batch: int) -> None:
    experiment = Experiment.model_validate({"train": {"batch_size": size, "micro_batch": 64}})
    assert plan.global_batch(experiment, "vae", Cluster(gpus)) == batch


def printed(capsys: pytest.CaptureFixture[str], file: Path, *flags: str) -> str:
    file.write_text(json.dumps(FIGURES))
    bench.main(["--plan", "--from", str(file), *flags])
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_of_the_measured_machine_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, tmp_path / "bench.json", "--images", "3e5", "--gpus", "0")
    assert "300,000 images on the measured machine, 2 cores" in out
    assert "training" in out  # what most of the time goes into
    assert "GPU" not in out


def test_the_plan_of_a_cluster_is_printed_with_what_it_assumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = []
    for images in ("1e9", "2e9"):
        out = printed(capsys, tmp_path / "bench.json", "--images", images, "--gpus", "64")
        assert f"{float(images):,.0f} images on 64 GPUs" in out
        assert "Assumed: " in out
        assert "a global batch of 1,024 (train.batch_size is 16)" in out
        hours = re.search(r"([\d.]+) hours in all", out)
        assert hours
        totals.append(float(hours[1]))
    assert totals[1] == pytest.approx(2 * totals[0], rel=0.2)
