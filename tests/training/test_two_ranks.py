"""Two gloo processes on CPU train as one process does on the same global batch, and stop together."""

import os
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
from npdraw_dist.core.noise import RowNoise
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.distributed.context import ddp_settings
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.training import loop
from npdraw_dist.training.context import Context
from npdraw_dist.training.feed import MemoryFeed, Share, noise_seed
from npdraw_dist.training.loop import Budget, Data, train
from tests.training.test_loop import PARTS, data, prior

SEED, BROKEN_STEP = 5, 2


class GlooContext(Context):
    """One of several plain processes, wrapped as a Ray Train worker wraps."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.cpu_started = 0.0
        self.rank, self.world_size = rank, world_size
        self.reports: list[dict[str, Any]] = []

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, **ddp_settings(module))

    def sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        assert (saved is None) == (self.rank > 0)
        self.reports.append(metrics)


class Breaking(PriorObjective):
    """The loss of the last row is NaN from BROKEN_STEP on; with two ranks, rank 1 has that row."""

    def forward(self, batch: Batch, progress: float, generator: Any) -> Any:
        rows = [RowNoise(noise_seed(SEED, step), torch.tensor([11])).keys for step in range(BROKEN_STEP, 6)]
        broken = torch.isin(generator.keys, torch.cat(rows))
        loss, metrics = super().forward(batch, progress, generator)
        return loss * torch.where(broken, torch.nan, 1.0), metrics


def trained(kind: type[PriorObjective], context: GlooContext) -> dict[str, Any]:
    return run(prior(kind=kind), context)


def trained_vae(context: GlooContext) -> dict[str, Any]:
    """Half of the steps with relaxed draws, then hard ones; with latents of the appearance."""
    torch.manual_seed(0)
    sizes = {"latents": "map:2", "encoder_width": 32, "decoder_width": 32}
    vae = {**sizes, "relaxed_images": 36, "images": 72}
    network = {"width": 8, "depth": 1, "attention_heads": 2}
    experiment = Experiment.model_validate({"bank": {"size": PARTS}, "prior": network, "vae": vae})
    model = NPDraw(ModelSpec.of(experiment))
    model.set_bank(PartBank(torch.rand(PARTS, 1, 5, 5)))
    return run(VAEObjective(model, experiment.vae), context)


def run(objective: Objective, context: GlooContext) -> dict[str, Any]:
    """Weights, summary and reports of 6 steps of 12 images, in the same micro-batches for two ranks."""
    config = TrainConfig(batch_size=12, micro_batch=2)
    feed = MemoryFeed(data(20, 0), Share(12, SEED, context.rank, context.world_size))
    summary = train(objective, Data(feed, data(10, 1)), config, Budget(72, 24), SEED, context)
    return {"weights": objective.state_dict(), "summary": summary, "reports": context.reports}


def felt(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the bias of the attention's keys.

    The softmax does not depend on that bias, so its gradient is a rounding error, which Adam enlarges.
    """
    kept = dict(weights)
    for name in [name for name in kept if name.endswith("qkv.bias")]:
        query, _, value = kept.pop(name).chunk(3)
        kept |= {f"{name}/query": query, f"{name}/value": value}
    return kept


def both(rank: int, world_size: int, folder: str) -> None:
    """Runs all trainings of one process and writes the results to `folder`."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timedelta(seconds=60), world_size=world_size, rank=rank
    )
    vars(loop)["SKIPPED_IN_ROW"] = 2
    vars(loop)["time"] = SimpleNamespace(process_time=lambda: 10.0 * (rank + 1))
    results = {k.__name__: trained(k, GlooContext(rank, world_size)) for k in (PriorObjective, Breaking)}
    results["vae"] = trained_vae(GlooContext(rank, world_size))
    torch.save(results, f"{folder}/rank{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(both, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in range(2)]


def assert_one(one: dict[str, Any], ranks: list[dict[str, Any]], rtol: float = 0.0) -> None:
    """The ranks are equal, and near a rank alone, which sums in another order."""
    for name, value in ranks[0]["weights"].items():
        assert torch.equal(value, ranks[1]["weights"][name]), name
    for name, value in felt(one["weights"]).items():
        torch.testing.assert_close(felt(ranks[0]["weights"])[name], value, rtol=rtol, atol=1e-5, msg=name)
    for rank in ranks:
        assert rank["summary"]["images"] == one["summary"]["images"] == 72
        for report, expected in zip(rank["reports"], one["reports"], strict=True):
            assert report.keys() == expected.keys()
            for key in report.keys() - {"images_per_s", "data_wait_share"}:
                assert report[key] == pytest.approx(expected[key], rel=1e-5), key


def test_two_ranks_train_the_prior_of_one(ranks: list[dict[str, Any]]) -> None:
    one = trained(PriorObjective, GlooContext(0, 1))
    assert len(one["reports"]) == 3
    assert_one(one, [rank["PriorObjective"] for rank in ranks])


def test_two_ranks_train_the_vae_of_one(ranks: list[dict[str, Any]]) -> None:
    one = trained_vae(GlooContext(0, 1))
    assert {"valid/elbo", "valid/kl_appearance"} <= one["reports"][-1].keys()
    assert_one(one, [rank["vae"] for rank in ranks], rtol=1e-4)


def test_the_core_seconds_are_those_of_both_ranks(ranks: list[dict[str, Any]]) -> None:
    """Rank 0 has taken 10 s, rank 1 20 s; a broken run counts too."""
    for rank in ranks:
        assert [rank[kind]["summary"]["core_seconds"] for kind in ("PriorObjective", "Breaking")] == [30, 30]
    paused = {rank["PriorObjective"]["summary"]["validation_core_seconds"] for rank in ranks}
    assert len(paused) == 1
    assert paused.pop() > 0


def test_a_broken_loss_on_one_rank_stops_both(
    ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first broken step is skipped, the second is one too many."""
    monkeypatch.setattr(loop, "SKIPPED_IN_ROW", 2)
    stopped = [rank["Breaking"]["summary"]["stopped_at_step"] for rank in ranks]
    assert stopped == [BROKEN_STEP + 1, BROKEN_STEP + 1]
    assert trained(Breaking, GlooContext(0, 1))["summary"]["stopped_at_step"] == BROKEN_STEP + 1
    for name, value in ranks[0]["Breaking"]["weights"].items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, ranks[1]["Breaking"]["weights"][name]), name
