"""The training loop alone in a process: resume, accumulation, schedule, metrics, a loss that breaks.

Shapes: N images, B batch, H x W pixels.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.objective import Objective, ParameterGroup, Stepping
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.nn.prior import Prior
from npdraw_dist.training import checkpoint
from npdraw_dist.training.feed import MemoryFeed
from npdraw_dist.training.loop import BOUND, Budget, Data, Run, train, validate
from npdraw_dist.training.workers import has_compiler
from tests.helpers.local_context import LocalContext

SIDE, STEPS, PARTS = 28, 36, 4
Make = Callable[[], Any]


class Regression(Objective):
    """Squared error of a linear map of the noisy pixels to the number of parts drawn."""

    def __init__(self, noise: float = 0.1, breaks_at: float = 2.0, stepping: Stepping | None = None) -> None:
        super().__init__()
        self.stepping = stepping or Stepping()  # type: ignore[misc]
        torch.manual_seed(0)
        self.linear = nn.Linear(SIDE * SIDE, 1)
        self.noise, self.breaks_at = noise, breaks_at

    def parameter_groups(self) -> list[ParameterGroup]:
        return [{"params": list(self.linear.parameters()), "lr": 0.01, "weight_decay": 0.01}]

    def networks(self) -> list[nn.Module]:
        return [self.linear]

    def _errors(self, batch: Batch, noise: float, generator: torch.Generator) -> Tensor:
        x = batch.images.flatten(1).float() / 255
        x = x + noise * torch.randn(x.shape, generator=generator)
        return (self.linear(x)[:, 0] - batch.z.whether.sum(1)).square()

    def forward(
        self, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self._errors(batch, self.noise, generator)
        if progress >= self.breaks_at:
            loss = loss * torch.inf
        return loss, {"parts": batch.z.whether.sum(1).float()}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"error": self._errors(batch, 0.0, generator)}


def prior(dropout: float = 0.0) -> PriorObjective:
    torch.manual_seed(0)
    experiment = Experiment.model_validate(
        {
            "bank": {"size": PARTS},
            "prior": {"width": 8, "depth": 1, "attention_heads": 2, "dropout": dropout},
        }
    )
    return PriorObjective(Prior(ModelSpec.of(experiment)), 0.01)


def data(n: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    whether = torch.rand(n, STEPS, generator=generator) < 0.4
    what = torch.randint(PARTS, (n, STEPS), generator=generator)
    return Batch.of(images, PartSequence(whether, torch.arange(STEPS).expand(n, -1), what))


def settings(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"batch_size": 8, "micro_batch": 4, **values})


def run(
    objective: Any,
    context: LocalContext,
    images: int,
    every: int = 24,
    n: int = 24,
    stop_at: int | None = None,
    config: TrainConfig | None = None,
    criterion: checkpoint.Criterion = BOUND,
) -> dict[str, Any]:
    """Trains on n images; an exception once `stop_at` images were seen."""
    config = config or settings()

    def show_progress(images_seen: int, images_per_s: float, note: Any) -> None:
        if stop_at is not None and images_seen >= stop_at:
            raise KeyboardInterrupt

    context.show_progress = show_progress  # type: ignore[method-assign]
    feed = MemoryFeed(data(n), config.batch_size, config.micro_batch, 5, 0, 1)
    budget = Budget(images, every, criterion)
    return train(objective, Data(feed, data(10, 1)), config, budget, 5, context)


def felt(objective: nn.Module) -> dict[str, Tensor]:
    """The parameters, without the bias of the attention's keys.

    The softmax does not feel that bias: its gradient is rounding alone, which Adam blows up.
    """
    named: dict[str, Tensor] = dict(objective.named_parameters())
    for name in [name for name in named if name.endswith("qkv.bias")]:
        query, _, value = named.pop(name).chunk(3)
        named |= {f"{name}/query": query, f"{name}/value": value}
    return named


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("make", "n"), [(Regression, 24), (Regression, 20), (prior, 24)])
def test_three_and_three_epochs_are_six(make: Make, n: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, first, second = make(), make(), make()
    context = LocalContext(tmp_path / "whole")
    run(whole, context, 6 * n, n=n)
    with pytest.raises(KeyboardInterrupt):
        run(first, LocalContext(tmp_path / "parts"), 6 * n, n=n, stop_at=3 * n + 8)
    resumed = LocalContext(tmp_path / "parts")
    summary = run(second, resumed, 6 * n, n=n)
    assert resumed.reports[0]["images_seen"] > 2 * n, "it did not resume"
    assert summary["images"] == 6 * n  # of both
    assert_equal(whole, second)
    timeless, after = (
        [{k: v for k, v in r.items() if k not in ("images_per_s", "data_wait_share")} for r in reports]
        for reports in (context.reports, resumed.reports)
    )
    assert timeless[-len(after) :] == after
    files = [
        sorted((tmp_path / run_name).glob("checkpoint_*"))[-1] / "state.safetensors"
        for run_name in ("whole", "parts")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dropout_resumes_bitwise_too(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    whole, first, second = (prior(dropout=0.3) for _ in range(3))
    run(whole, LocalContext(), 72)
    with pytest.raises(KeyboardInterrupt):
        run(first, LocalContext(tmp_path / "parts"), 72, stop_at=48)
    torch.manual_seed(99)  # another process stands elsewhere in its global random stream
    run(second, LocalContext(tmp_path / "parts"), 72)
    assert_equal(whole, second)


def test_a_run_whose_first_checkpoint_is_damaged_begins_anew(tmp_path: Path) -> None:
    whole, first, second = prior(), prior(), prior()
    (tmp_path / "parts").mkdir()
    run(whole, LocalContext(), 72)
    with pytest.raises(KeyboardInterrupt):
        run(first, LocalContext(tmp_path / "parts"), 72, stop_at=32)
    (only,) = (tmp_path / "parts").glob("checkpoint_*")
    (only / "state.safetensors").write_bytes(b"damaged")
    context = LocalContext(tmp_path / "parts")
    assert run(second, context, 72)["images"] == 72
    assert context.reports[0]["images_seen"] == 24
    assert_equal(whole, second)
    names = sorted(path.name for path in (tmp_path / "parts").glob("checkpoint_*"))
    assert names[:2] == [only.name, f"{only.name}_1"]


def test_a_finished_run_does_not_train_on(tmp_path: Path) -> None:
    objective = Regression()
    run(objective, LocalContext(tmp_path), 48)
    again = Regression()
    context = LocalContext(tmp_path)
    assert run(again, context, 48)["images"] == 48
    assert context.reports == []
    assert_equal(objective, again)


def gradients(objective: Any, micro_batch: int) -> dict[str, Tensor]:
    """The gradients of the first step on a batch of 8, in micro-batches."""
    config = settings(micro_batch=micro_batch)
    objective.stepping = Stepping(clip=math.inf)
    step = Run(objective, config, 5, LocalContext())
    step.update(0, next(MemoryFeed(data(24), 8, micro_batch, 5, 0, 1).steps(0)), 48)
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [lambda: Regression(noise=0.0), prior])
def test_micro_batches_add_up_to_the_batch(make: Make) -> None:
    """Gradients are compared, not weights: Adam turns a gradient near zero into a whole step of its sign,
    so weights would differ by the rounding of the processor.
    """
    small, large = gradients(make(), 2), gradients(make(), 8)
    scale = max(float(value.abs().max()) for value in large.values())
    assert small.keys() == large.keys()
    for name, value in small.items():
        torch.testing.assert_close(value, large[name], rtol=1e-4, atol=1e-6 * scale, msg=name)


def test_one_step_is_adam_on_the_mean_of_the_loss() -> None:
    """Against the first step of AdamW by hand: lr * (g / (|g| + eps) + decay * w)."""
    objective = Regression(noise=0.0, stepping=Stepping(clip=math.inf, warmup=0.0))
    start = Regression(noise=0.0)
    run(objective, LocalContext(), 8, n=8)
    batch = data(8)
    start._errors(batch, 0.0, torch.Generator()).mean().backward()
    weight = start.linear.weight
    assert weight.grad is not None
    step = weight.grad / (weight.grad.abs() + 1e-8)
    expected = weight * (1 - 0.01 * 0.01) - 0.01 * step
    torch.testing.assert_close(objective.linear.weight, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("breaks_at", [0.5, 0.0])
def test_a_loss_that_breaks_stops_and_keeps_the_checkpoint(breaks_at: float, tmp_path: Path) -> None:
    objective = Regression(breaks_at=breaks_at)
    context = LocalContext(tmp_path)
    summary = run(objective, context, 80, every=16)
    assert summary["stopped_at_step"] == round(breaks_at * 10)
    assert all(torch.isfinite(p).all() for p in objective.parameters())
    kept = sorted(tmp_path.glob("checkpoint_*"))
    assert [folder.name for folder in kept] == [f"checkpoint_{s:09d}" for s in (2, 4) if breaks_at]
    if kept:
        tensors, progress = checkpoint.read(kept[-1])
        assert progress["step"] == 4
        assert all(torch.isfinite(value).all() for value in tensors.values())


def test_the_learning_rate_rises_then_falls_as_a_half_cosine() -> None:
    context = LocalContext()
    images, warmup = 160, 0.25
    run(Regression(stepping=Stepping(warmup=warmup)), context, images, every=8)
    rise = warmup * images
    expected = []
    for seen in range(0, 160, 8):
        if seen < rise:
            expected.append(0.01 * (seen + 1) / (rise + 1))
        else:
            expected.append(0.01 * 0.5 * (1 + math.cos(math.pi * (seen - rise) / (images - rise))))
    assert [r["learning_rate"] for r in context.reports] == pytest.approx(expected)
    assert [r["images_seen"] for r in context.reports] == list(range(8, 168, 8))


def test_the_learning_rate_can_stay_after_the_warm_up() -> None:
    context = LocalContext()
    run(Regression(stepping=Stepping(warmup=0.25, falls=False)), context, 160, every=8)
    rates = [0.01 * (seen + 1) / 41 if seen < 40 else 0.01 for seen in range(0, 160, 8)]
    assert [r["learning_rate"] for r in context.reports] == pytest.approx(rates)


def test_the_learning_rate_can_fall_on_a_line() -> None:
    context = LocalContext()
    asked = settings(rate_decay="linear")
    run(Regression(stepping=Stepping(warmup=0.25)), context, 160, every=8, config=asked)
    rates = [0.01 * min((seen + 1) / 41, (160 - seen) / 64, 1) for seen in range(0, 160, 8)]
    assert [r["learning_rate"] for r in context.reports] == pytest.approx(rates)


def test_two_steps_have_the_decay_of_squared_gradients_that_is_asked_for() -> None:
    """Against torch's Adam on the same gradients."""
    stepping = Stepping(beta2=0.6, clip=math.inf, warmup=0.0, falls=False)
    objective, expected = Regression(noise=0.0, stepping=stepping), Regression(noise=0.0)
    run(objective, LocalContext(), 16, n=8)
    optimizer = AdamW(expected.parameters(), lr=0.01, weight_decay=0.01, betas=(0.9, 0.6))
    for _ in range(2):
        optimizer.zero_grad()
        expected._errors(data(8), 0.0, torch.Generator()).mean().backward()
        optimizer.step()
    torch.testing.assert_close(objective.linear.weight, expected.linear.weight, rtol=1e-4, atol=1e-6)


class SlowFeed:
    """A batch a step, of which each takes `wait` seconds of sleep to come."""

    def __init__(self, wait: float) -> None:
        self.wait = wait

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        while True:
            time.sleep(self.wait)
            yield [(0, data(8))]


@pytest.mark.parametrize("wait", [0.0, 0.02])
def test_the_share_of_waiting_is_that_of_the_feed(wait: float) -> None:
    """Sleep is a lower bound: a busy machine only adds to both."""
    context = LocalContext()
    started, before = time.perf_counter(), time.time()
    summary = train(Regression(), Data(SlowFeed(wait), data(10, 1)), settings(), Budget(40, 40), 5, context)
    taken = time.perf_counter() - started
    assert 4 * wait / taken <= summary["data_wait_share"] <= 1
    assert wait <= summary["first_wait_s"] <= taken
    assert context.reports[0]["data_wait_share"] == pytest.approx(summary["data_wait_share"], rel=0.5)
    assert before <= summary["first_step_at"] <= time.time()


def test_a_budget_between_two_batches_is_rounded_up() -> None:
    context = LocalContext()
    summary = run(Regression(), context, 20, every=1000)
    assert (summary["images"], len(context.reports)) == (24, 1)
    assert (context.reports[0]["images_seen"], context.reports[0]["step"]) == (20, 3)


def test_training_metrics_are_means_over_images() -> None:
    """An epoch's mean number of parts is the data's, and is not carried into the next report."""
    context = LocalContext()
    run(Regression(), context, 72, every=24)
    mean = float(data(24).z.whether.sum(1).float().mean())
    assert [r["train/parts"] for r in context.reports] == pytest.approx([mean] * 3)


def test_a_larger_batch_has_the_root_of_its_factor_in_its_rates() -> None:
    """At every step of the schedule, whose warm-up is in images."""
    rates = []
    for scaled in ({}, {"rate_batch": 2}):
        context = LocalContext()
        run(Regression(stepping=Stepping(warmup=0.5)), context, 72, every=8, config=settings(**scaled))
        rates.append([record["learning_rate"] for record in context.reports])
    assert rates[1] == pytest.approx([2 * rate for rate in rates[0]])  # a batch of 8
    assert len(set(rates[0])) > 5


@pytest.mark.parametrize(("batches", "images"), [(8, 10), (2, 8), (1, 4)])
def test_validation_metrics_are_sums_over_counts(batches: int, images: int) -> None:
    """10 images in micro-batches of 4, 4 and 2: each image counts alike."""
    objective = Regression()
    valid = data(10, 1)
    means = validate(objective, valid, settings(eval_batches=batches), 5, LocalContext())
    with torch.no_grad():
        errors = objective._errors(valid[:images], 0.0, torch.Generator())
    assert means == {"error": pytest.approx(float(errors.double().mean()))}
    assert objective.training


@pytest.mark.slow  # compiling takes most of a minute
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_networks_train_alike(tmp_path: Path) -> None:
    plain, compiled = prior(), prior()
    one, other = LocalContext(), LocalContext(tmp_path)
    run(plain, one, 48)
    run(compiled, other, 48, config=settings(compile=True))
    for name, value in felt(plain).items():
        torch.testing.assert_close(felt(compiled)[name], value, rtol=1e-3, atol=1e-4)
    again = prior()  # a checkpoint of compiled networks is one of plain ones
    checkpoint.restore(next(tmp_path.glob("checkpoint_*")), again, AdamW(again.parameters()))


class Halving(Regression):
    """Notes the half of a number that is just above the normal ones."""

    halves: ClassVar[list[float]] = []

    def forward(
        self, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.halves.append(float(torch.tensor(2e-38) / 2))
        return super().forward(batch, progress, generator)


@pytest.mark.parametrize("stop_at", [None, 8])
def test_training_alone_takes_numbers_below_the_normal_ones_for_0(stop_at: int | None) -> None:
    """Hypothesis, for one, refuses to work in a thread that does, also where training has failed."""
    assert float(torch.tensor(2e-38) / 2) > 0
    Halving.halves.clear()
    with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
        run(Halving(), LocalContext(), 24, stop_at=stop_at)
    assert set(Halving.halves) == {0.0}
    assert float(torch.tensor(2e-38) / 2) > 0
