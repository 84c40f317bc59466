"""Two gloo processes on CPU train as one does on the same global batch, and stop together."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.nn.prior import Prior
from npdraw_dist.training import loop
from npdraw_dist.training.context import (
    BUCKETS,
    LARGEST_BUCKET_MB,
    LEAST_BUCKET_MB,
    Context,
    ddp_settings,
)
from npdraw_dist.training.device import Graphs
from npdraw_dist.training.feed import MemoryFeed, noise_seed
from npdraw_dist.training.loop import Budget, Data, train

SEED, STEPS, PARTS, BROKEN_STEP = 5, 36, 4, 2
LATENTS = (2, "map:2")  # of the appearance: a vector for each image, or a map
WIDE = {"width": 128, "depth": 4, "attention_heads": 4}  # 3 MB of gradients
Wrapping = Callable[[nn.Module], dict[str, Any]]


class GlooContext(Context):
    """One of several plain processes, wrapped as a Ray Train worker wraps."""

    def __init__(self, rank: int, world_size: int, wrapping: Wrapping = ddp_settings) -> None:
        super().__init__()
        self.cpu_started = 0.0
        self.rank, self.world_size = rank, world_size
        self.reports: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.wrapping = wrapping
        self.wrapped: nn.parallel.DistributedDataParallel | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return module
        wrapped = nn.parallel.DistributedDataParallel(module, **self.wrapping(module))
        self.wrapped = wrapped
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        assert (saved is None) == (self.rank > 0)
        self.reports.append(metrics)

    def save(self, saved: Path | None, name: str) -> None:
        raise AssertionError("nothing asked for a checkpoint")

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def add_pictures(self, row: dict[str, float], pictures: Any) -> None:
        raise AssertionError("nobody asked for pictures")


class Breaking(PriorObjective):
    """Not a number in micro-batch 1 of one step: with two ranks, on rank 1 alone."""

    def forward(
        self, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().forward(batch, progress, generator)
        broken = generator.initial_seed() == noise_seed(SEED, BROKEN_STEP, 1)
        return (loss * torch.nan if broken else loss), metrics


def data(n: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    whether = torch.rand(n, STEPS, generator=generator) < 0.4
    what = torch.randint(PARTS, (n, STEPS), generator=generator)
    where = torch.arange(STEPS).expand(n, -1)
    images = torch.randint(256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return Batch.of(images, PartSequence(whether, where, what))


def trained(
    kind: type[PriorObjective],
    context: GlooContext,
    network: dict[str, int] | None = None,
) -> dict[str, Any]:
    torch.manual_seed(0)
    network = network or {"width": 8, "depth": 1, "attention_heads": 2}
    spec = ModelSpec.of(Experiment.model_validate({"bank": {"size": PARTS}, "prior": network}))
    return run(kind(Prior(spec), 0.01), context)


def trained_vae(context: GlooContext, latents: int | str) -> dict[str, Any]:
    """Half of the steps with relaxed draws, then hard ones."""
    torch.manual_seed(0)
    sizes = {"latents": latents, "encoder_width": 32, "decoder_width": 32, "relaxed_images": 36, "images": 72}
    prior = {"width": 8, "depth": 1, "attention_heads": 2}
    experiment = Experiment.model_validate({"bank": {"size": PARTS}, "prior": prior, "vae": sizes})
    model = NPDraw(ModelSpec.of(experiment))
    model.set_bank(PartBank(torch.rand(PARTS, 1, 5, 5)))
    return run(VAEObjective(model, experiment.vae), context)


def run(objective: Objective, context: GlooContext) -> dict[str, Any]:
    """Weights, summary and reports of 6 steps of 3 micro-batches (so two ranks get 2 and 1)."""
    config = TrainConfig(batch_size=12, micro_batch=4)
    feed = MemoryFeed(data(20, 0), 12, 4, SEED, context.rank, context.world_size)
    summary = train(objective, Data(feed, data(10, 1)), config, Budget(72, 24), SEED, context)
    found: dict[str, Any] = {
        "weights": objective.state_dict(),
        "summary": summary,
        "reports": context.reports,
    }
    if context.wrapped is not None:
        logged = context.wrapped._get_ddp_logging_data()
        found["buckets"] = [int(size) for size in str(logged["rebuilt_bucket_sizes"]).split(",")]
    return found


def alone(kind: type[PriorObjective]) -> dict[str, Any]:
    return trained(kind, GlooContext(0, 1))


def as_torch_does(module: nn.Module) -> dict[str, Any]:
    """How the ranks were wrapped before there were several buckets."""
    return {"gradient_as_bucket_view": True}


def felt(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, without the bias of the attention's keys.

    The softmax does not feel that bias: its gradient is rounding alone, which Adam blows up.
    """
    kept = dict(weights)
    for name in [name for name in kept if name.endswith("qkv.bias")]:
        query, _, value = kept.pop(name).chunk(3)
        kept |= {f"{name}/query": query, f"{name}/value": value}
    return kept


def both(rank: int, world_size: int, folder: str) -> None:
    """One process: the sound run, the breaking one, and wide networks; results go to `folder`."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timedelta(seconds=60), world_size=world_size, rank=rank
    )
    vars(loop)["time"] = SimpleNamespace(process_time=lambda: 10.0 * (rank + 1))
    kinds = (PriorObjective, Breaking)
    results = {kind.__name__: trained(kind, GlooContext(rank, world_size)) for kind in kinds}
    for latents in LATENTS:
        results[f"vae {latents}"] = trained_vae(GlooContext(rank, world_size), latents)
    for wrapping in (as_torch_does, ddp_settings):
        context = GlooContext(rank, world_size, wrapping)
        results[wrapping.__name__] = trained(PriorObjective, context, WIDE)
    vars(loop)["Graphs"] = lambda used: Graphs(used=True)
    results["graphs"] = trained(PriorObjective, GlooContext(rank, world_size), WIDE)
    torch.save(results, f"{folder}/rank{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(both, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in range(2)]


def test_two_ranks_are_one(ranks: list[dict[str, Any]]) -> None:
    one = alone(PriorObjective)
    first, second = (rank["PriorObjective"] for rank in ranks)
    for name, value in felt(one["weights"]).items():
        torch.testing.assert_close(felt(first["weights"])[name], value, rtol=0, atol=1e-5, msg=name)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert first["summary"]["images"] == one["summary"]["images"] == 72


@pytest.mark.parametrize("latents", LATENTS)
def test_two_ranks_train_the_vae_of_one(ranks: list[dict[str, Any]], latents: int | str) -> None:
    """Relaxed steps, hard steps and latents of the appearance; sums in another order differ by rounding."""
    one, first, second = trained_vae(GlooContext(0, 1), latents), *(rank[f"vae {latents}"] for rank in ranks)
    assert {"valid/elbo", "valid/kl_appearance"} <= one["reports"][-1].keys()
    for report, expected in zip(first["reports"], one["reports"], strict=True):
        for name in ("train/loss", "valid/elbo", "valid/kl_appearance"):
            assert report[name] == pytest.approx(expected[name], rel=1e-5), name
    for name, value in felt(one["weights"]).items():
        torch.testing.assert_close(felt(first["weights"])[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_the_core_seconds_are_those_of_both_ranks(ranks: list[dict[str, Any]]) -> None:
    """Rank 0 has taken 10 s, rank 1 20 s; a broken run counts too."""
    for rank in ranks:
        found = [rank[kind]["summary"]["core_seconds"] for kind in ("PriorObjective", "Breaking")]
        assert found == [
            30.0,
            30.0,
        ]


def test_two_ranks_report_what_one_does(ranks: list[dict[str, Any]]) -> None:
    expected_reports = alone(PriorObjective)["reports"]
    assert len(expected_reports) == 3
    for rank in ranks:
        for report, expected in zip(rank["PriorObjective"]["reports"], expected_reports, strict=True):
            assert report.keys() == expected.keys()
            for key in report.keys() - {"images_per_s", "data_wait_share"}:
                assert report[key] == pytest.approx(expected[key], rel=1e-5), key


def test_a_broken_loss_on_one_rank_stops_both(ranks: list[dict[str, Any]]) -> None:
    stopped = [rank["Breaking"]["summary"]["stopped_at_step"] for rank in ranks]
    assert stopped == [BROKEN_STEP, BROKEN_STEP]
    assert alone(Breaking)["summary"]["stopped_at_step"] == BROKEN_STEP
    for name, value in ranks[0]["Breaking"]["weights"].items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, ranks[1]["Breaking"]["weights"][name]), name


def test_gradients_travel_in_several_buckets_with_the_same_result(ranks: list[dict[str, Any]]) -> None:
    """By torch's default they are two: one is full when the backward pass is nearly done."""
    for rank in ranks:
        before, after = rank["as_torch_does"], rank["ddp_settings"]
        assert len(before["buckets"]) <= 2
        assert len(after["buckets"]) >= 3
        assert sum(after["buckets"]) == sum(before["buckets"]) > 2 * 2**20
        for name, value in before["weights"].items():
            assert torch.equal(after["weights"][name], value), name


def test_gradients_that_stay_in_place_give_the_same_result(ranks: list[dict[str, Any]]) -> None:
    """As CUDA graphs need them."""
    for rank in ranks:
        for name, value in rank["ddp_settings"]["weights"].items():
            assert torch.equal(rank["graphs"]["weights"][name], value), name


def test_buckets_are_a_share_of_the_trained_weights() -> None:
    module = nn.Sequential(nn.Linear(1024, 2048, bias=False), nn.Linear(8, 8, bias=False))  # 8 MB
    settings = ddp_settings(module)
    assert settings["bucket_cap_mb"] == pytest.approx(8 / BUCKETS, rel=1e-3)
    assert settings["broadcast_buffers"] is False
    module[0].requires_grad_(False)
    assert ddp_settings(module)["bucket_cap_mb"] == LEAST_BUCKET_MB
    large = nn.Linear(8192, 8192, device="meta")
    assert ddp_settings(large)["bucket_cap_mb"] == LARGEST_BUCKET_MB
