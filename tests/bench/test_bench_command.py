"""The command `bench` on the digits: its figures, what they are made of, and a user's mistakes."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from npdraw_dist.bench import __main__ as bench
from npdraw_dist.bench import clustering, parsing, sections
from npdraw_dist.bench.repeated_images import experiment_on, write_repeated
from npdraw_dist.bench.timing import median_seconds
from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.sources import open_source

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
        "kmeans_speedup_vs_minibatch",
        "kmeans_objective_vs_minibatch",
        "parse_images_per_s",
        "parse_time_vs_matmul",
        "training_plain_images_per_s",
        "ray_loop_ratio",
        "peak_rss_mb",
        "vae_step_images_per_s",
        "vae_hard_step_images_per_s",
        "vae_step_flops_utilization",
        "prior_step_flops_utilization",
        "kernels_vae_hard_step",
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
def test_ours_is_the_objective_of_sklearn_and_of_any_number_of_shards(figures: dict[str, float]) -> None:
    assert figures["kmeans_objective_vs_sklearn"] < 1.05
    assert figures["kmeans_objective"] == pytest.approx(
        figures["kmeans_objective_vs_sklearn"] * figures["sklearn_objective"]
    )
    assert figures["sharded_objective_difference"] < 1e-9
    assert figures["sharded_centroid_difference"] < 1e-6


@pytest.mark.slow
def test_parsing_takes_longer_than_its_products(figures: dict[str, float]) -> None:
    assert figures["parse_time_vs_matmul"] > 1


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
    bench.main(["--quick", *SMALL, "--only", "kernels", "--out", str(file)])
    figures = json.loads(file.read_text())
    assert figures["sgemm_gflops"] > 0  # of `machine`, which says what the rest was measured on
    assert "parse_images_per_s" not in figures
    for what in ("prior", "vae_relaxed", "vae_hard"):
        assert figures[f"waits_{what}"] == 0
        parts = [figures[f"kernels_{what}_{part}"] for part in ("forward", "backward", "step")]
        assert all(20 < part < parts[2] < 900 for part in parts[:2])


def test_the_sizes_of_the_scale() -> None:
    assert bench.parse(["--scaling", "--sizes", "30,300"])[0].sizes == (30, 300)
    assert bench.parse(["--scaling"])[0].sizes is None
    with pytest.raises(UserError, match="--sizes are those of --scaling"):
        bench.parse(["--sizes", "30,300"])
    for wrong in ("30", "300,30", "30,30"):
        with pytest.raises(UserError, match="two or more growing numbers"):
            bench.parse(["--scaling", "--sizes", wrong])


def test_sections_are_chosen_by_name() -> None:
    assert sections.chosen(" step, serve") == ("step", "serve")
    assert sections.Extent(only=("serve", "step")).sections == ["machine", "step", "serve"]
    whole = sections.Extent().sections
    assert not {"scale", "serve"} & set(whole)
    assert sections.Extent(scale=True, serve=True).sections == list(sections.SECTIONS)
    assert set(sections.SECTIONS) - set(whole) == {"scale", "serve"}
    assert set(whole) - set(sections.Extent(quick=True).sections) == {"compile"}


def test_objective_against_scipy() -> None:
    rng = np.random.default_rng(0)
    patches, centroids = rng.random((500, 25), np.float32), rng.random((7, 25), np.float32)
    expected = cdist(patches, centroids, "sqeuclidean").min(1).mean()
    assert clustering.objective(patches, centroids) == pytest.approx(expected, rel=1e-5)


def test_products_are_recorded_in_order() -> None:
    a, b, c = torch.rand(3, 4), torch.rand(4, 5), torch.rand(5, 2)
    with (products := parsing.MatrixProducts()):
        found = a @ b @ c
    assert torch.equal(found, a @ b @ c)
    assert products.shapes == [((3, 4), (4, 5)), ((3, 5), (5, 2))]


def test_times_are_medians_in_turns() -> None:
    calls: list[str] = []
    found = median_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert all(0 <= seconds < 1 for seconds in found)


def test_a_repeated_set_has_new_ids_and_the_same_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 1, 28, 28), dtype=np.uint8)
    work = Workload(Experiment(), images, quick=False)
    write_repeated(work, 5000, tmp_path)
    data = experiment_on(work, tmp_path, {}).data
    source = open_source(data, 0)
    rows = [shard.read() for shard in source.shards("train")]
    ids = [name for part in rows for name in part.ids]
    assert len(set(ids)) == len(ids) == 5000
    assert not source.shards("valid")
    assert not source.shards("test")
    np.testing.assert_array_equal(np.concatenate([part.images for part in rows])[4999], images[4999 % 700])
