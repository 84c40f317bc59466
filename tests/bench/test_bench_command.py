"""The command `bench` on the digits: its figures, what they are made of, and a user's mistakes."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from npdraw_dist.bench import __main__ as bench
from npdraw_dist.bench import clustering, sections

pytestmark = pytest.mark.timeout(900)  # the whole command, beside the tests of Ray

WIDTHS = ("prior.width", "vae.encoder_width", "vae.decoder_width")
SMALL = ["--bank.size", "20", "--prior.depth", "1", *(word for n in WIDTHS for word in (f"--{n}", "16"))]


# Slow: two minutes of the whole command. The other files here test its sections.
@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    file = tmp_path_factory.mktemp("bench") / "figures.json"
    bench.main(["--quick", *SMALL, "--out", str(file)])
    return dict(json.loads(file.read_text()))


@pytest.mark.parametrize(
    "name",
    [
        "sgemm_gflops",
        "patches_per_s",
        "kmeans_speedup_vs_sklearn",
        "kmeans_objective_vs_sklearn",
        "parse_images_per_s",
        "training_plain_images_per_s",
        "ray_loop_ratio",
        "peak_rss_mb",
        "vae_step_images_per_s",
        "vae_hard_step_images_per_s",
        "vae_step_flops_utilization",
        "prior_step_flops_utilization",
        "vae_step_speedup_vs_dense",
        "vae_step_memory_vs_dense",
        "render_speedup_vs_dense",
        "samples_per_s",
        "sample_speedup_vs_recompute",
        "data_wait_share",
        "data_wait_share_streamed",
        "startup_s",
        "parse_shard_us_per_image",
    ],
)
@pytest.mark.slow
def test_a_figure_is_finite_and_positive(figures: dict[str, float], name: str) -> None:
    assert math.isfinite(figures[name])
    assert figures[name] > 0


@pytest.mark.slow
def test_the_json_is_flat_and_says_where_it_comes_from(figures: dict[str, Any]) -> None:
    assert all(not isinstance(value, dict | list) for value in figures.values())
    for name in ("date", "commit", "processor", "cores", "python", "torch", "ray", "faiss", "numpy"):
        assert name in figures
    assert figures["source"] == "digits"
    assert figures["quick"] == 1


@pytest.mark.slow
def test_ours_is_the_objective_of_sklearn(figures: dict[str, float]) -> None:
    assert figures["kmeans_objective_vs_sklearn"] < 1.05
    assert figures["kmeans_objective"] == pytest.approx(
        figures["kmeans_objective_vs_sklearn"] * figures["sklearn_objective"]
    )


@pytest.mark.slow
def test_ratios_of_training_are_of_the_rates(figures: dict[str, float]) -> None:
    rates = [v for name, v in figures.items() if re.fullmatch("training_.*_images_per_s", name)]
    assert figures["ray_loop_ratio"] == pytest.approx(rates[1] / rates[0])
    if os.cpu_count() != 1:
        assert figures["two_worker_ratio"] == pytest.approx(rates[2] / rates[1])


@pytest.mark.slow
def test_shares_are_shares(figures: dict[str, float]) -> None:
    for name in ("data_wait_share", "data_wait_share_streamed", "vae_step_flops_utilization"):
        assert 0 < figures[name] < 1, name
    assert figures["vae_step_memory_vs_dense"] < 1


def test_only_the_sections_that_are_named_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    bench.main(["--quick", *SMALL, "--only", "parse", "--out", str(file)])
    figures = json.loads(file.read_text())
    assert figures["sgemm_gflops"] > 0  # of `machine`, which says what the rest was measured on
    assert figures["parse_images_per_s"] > 0
    assert "patches_per_s" not in figures


def test_sections_are_chosen_by_name() -> None:
    assert sections.chosen(" serve, step") == ["machine", "step", "serve"]
    assert set(sections.SECTIONS) - set(sections.chosen(None)) == {"serve"}


def test_objective_against_scipy() -> None:
    rng = np.random.default_rng(0)
    patches, centroids = rng.random((500, 25), np.float32), rng.random((7, 25), np.float32)
    expected = cdist(patches, centroids, "sqeuclidean").min(1).mean()
    assert clustering.objective(patches, centroids) == pytest.approx(expected, rel=1e-5)
