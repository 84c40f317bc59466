"""The training loop in one process: resume, accumulation, schedule, metrics, a loss that is not finite.

Shapes: N images, B batch, H x W pixels.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from npdraw_dist.config.schema import Experiment, TrainConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.noise import Noise, normal
from npdraw_dist.core.objective import Objective, ParameterGroup, Stepping
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.nn.prior import Prior
from npdraw_dist.training import checkpoint
from npdraw_dist.training.feed import MemoryFeed, Share
from npdraw_dist.training.loop import Budget, Data, Run, train
from tests.helpers.local_context import LocalContext

SIDE, STEPS, PARTS = 28, 36, 4
Make = Callable[[], Any]


class Regression(Objective):
    """Squared error of a linear map of the noisy pixels to the number of parts drawn."""

    def __init__(
        self,
        noise: float = 0.1,
        breaks_at: Callable[[float], bool] = lambda progress: False,
        stepping: Stepping | None = None,
    ) -> None:
        super().__init__()
        self.stepping = stepping or Stepping()  # type: ignore[misc]
        torch.manual_seed(0)
        self.linear = nn.Linear(SIDE * SIDE, 1)
        self.noise, self.breaks_at = noise, breaks_at

    def parameter_groups(self) -> list[ParameterGroup]:
        parameters = list(self.linear.parameters())
        return [{"params": parameters, "lr": 0.01, "weight_decay": 0.01, "matrices": True}]

    def _errors(self, batch: Batch, noise: float, generator: Noise) -> Tensor:
        x = batch.images.flatten(1).float() / 255
        x = x + noise * normal(generator, x)
        return (self.linear(x)[:, 0] - batch.z.whether.sum(1)).square()

    def forward(self, batch: Batch, progress: float, generator: Noise) -> Any:
        loss = self._errors(batch, self.noise, generator)
        if self.breaks_at(progress):
            loss = loss * torch.inf
        return loss, {"parts": batch.z.whether.sum(1).float()}

    def evaluate(self, batch: Batch, generator: Noise) -> dict[str, Tensor]:
        return {"error": self._errors(batch, 0.0, generator)}


def prior(dropout: float = 0.0, kind: type[PriorObjective] = PriorObjective) -> PriorObjective:
    torch.manual_seed(0)
    network = {"width": 8, "depth": 1, "attention_heads": 2, "dropout": dropout}
    experiment = Experiment.model_validate({"bank": {"size": PARTS}, "prior": network})
    found = Prior(ModelSpec.of(experiment))
    found.set_bank(torch.rand(PARTS, 1, 5, 5))
    return kind(found, 0.01)


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
) -> dict[str, Any]:
    """Trains on n images; an exception once `stop_at` images were seen."""
    config = config or settings()

    def show_progress(images_seen: int, images_per_s: float, note: Any) -> None:
        if stop_at is not None and images_seen >= stop_at:
            raise KeyboardInterrupt

    context.show_progress = show_progress  # type: ignore[method-assign]
    feed = MemoryFeed(data(n), Share(config.batch_size, 5))
    return train(objective, Data(feed, data(10, 1)), config, Budget(images, every), 5, context)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("make", "n", "average"), [(Regression, 20, 0), (Regression, 24, 40), (lambda: prior(dropout=0.3), 24, 0)]
)
def test_two_and_two_epochs_are_four(make: Make, n: int, average: int, tmp_path: Path) -> None:
    """Also if an average of the weights over some images is validated."""
    whole, first, second = make(), make(), make()
    config = settings(average_images=average)
    context, resumed = LocalContext(tmp_path / "whole"), LocalContext(tmp_path / "parts")
    run(whole, context, 4 * n, n=n, config=config)
    with pytest.raises(KeyboardInterrupt):
        run(first, LocalContext(tmp_path / "parts"), 4 * n, n=n, stop_at=2 * n + 8, config=config)
    torch.manual_seed(99)  # another process stands elsewhere in its global random stream
    summary = run(second, resumed, 4 * n, n=n, config=config)
    assert resumed.reports[0]["images_seen"] > 2 * n, "it did not resume"
    assert summary["images"] == 4 * n  # of both
    assert_equal(whole, second)
    timeless, after = (
        [{k: v for k, v in r.items() if k not in ("images_per_s", "data_wait_share")} for r in reports]
        for reports in (context.reports, resumed.reports)
    )
    assert timeless[-len(after) :] == after
    last = [max(folder.glob("checkpoint_*")) for folder in (tmp_path / "whole", tmp_path / "parts")]
    assert len({(folder / "state.safetensors").read_bytes() for folder in last}) == 1


def test_a_run_whose_first_checkpoint_is_damaged_begins_anew(tmp_path: Path) -> None:
    whole, first, second = prior(), prior(), prior()
    run(whole, LocalContext(), 72)
    with pytest.raises(KeyboardInterrupt):
        run(first, LocalContext(tmp_path), 72, stop_at=32)
    (only,) = tmp_path.glob("checkpoint_*")
    (only / "state.safetensors").write_bytes(b"damaged")
    context = LocalContext(tmp_path)
    assert run(second, context, 72)["images"] == 72
    assert context.reports[0]["images_seen"] == 24
    assert_equal(whole, second)
    names = sorted(path.name for path in tmp_path.glob("checkpoint_*"))
    assert names[:2] == [only.name, f"{only.name}_1"]


@pytest.mark.parametrize("breaks_at", [0.2, 0.0])
def test_a_loss_that_breaks_stops_and_keeps_the_checkpoint(breaks_at: float, tmp_path: Path) -> None:
    """After ten steps that are skipped."""
    objective = Regression(breaks_at=lambda progress: progress >= breaks_at)
    context = LocalContext(tmp_path)
    summary = run(objective, context, 160, every=16)
    assert summary["stopped_at_step"] == round(breaks_at * 20) + 9
    assert all(torch.isfinite(p).all() for p in objective.parameters())
    kept = sorted(tmp_path.glob("checkpoint_*"))
    assert [folder.name for folder in kept] == [
        f"checkpoint_{s:09d}" for s in (2, 4, 6, 8, 10, 12) if s <= summary["stopped_at_step"]
    ]
    if breaks_at:
        weights = [checkpoint.read(folder)[0]["model/linear.weight"] for folder in kept[1:]]
        assert all(torch.equal(found, weights[0]) for found in weights)  # as before the first broken step


@pytest.mark.parametrize(
    ("falls", "changes", "peak", "fall"),
    [
        (True, {}, 0.01, lambda seen: min((160 - seen) / 64, 1)),
        (False, {}, 0.01, lambda seen: 1),
        (False, {"rate_batch": 2}, 0.02, lambda seen: 1),  # the root of the factor of a batch of 8
    ],
)
def test_the_learning_rate_rises_and_then_falls_or_stays(
    falls: bool, changes: dict[str, Any], peak: float, fall: Callable[[int], float]
) -> None:
    context = LocalContext()
    objective = Regression(stepping=Stepping(warmup=0.25, falls=falls))
    run(objective, context, 160, every=8, config=settings(**changes))
    rates = [peak * ((seen + 1) / 41 if seen < 40 else fall(seen)) for seen in range(0, 160, 8)]
    assert [r["learning_rate"] for r in context.reports] == pytest.approx(rates)
    assert [r["images_seen"] for r in context.reports] == list(range(8, 168, 8))


def test_two_steps_have_the_decay_of_squared_gradients_of_the_stage() -> None:
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


def test_a_report_that_fails_leaves_no_checkpoint_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train removes one that it has uploaded; each restart would leave another until the disk is full."""

    class Fails(LocalContext):
        removes_saved = True

        def report(self, *_: Any, **__: Any) -> None:
            raise OSError("no space left")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match="no space left"):
        run(Regression(), Fails(), 16)
    assert not list(tmp_path.iterdir())


def test_a_budget_between_two_batches_is_rounded_up() -> None:
    context = LocalContext()
    summary = run(Regression(), context, 20, every=1000)
    assert (summary["images"], len(context.reports)) == (24, 1)
    assert (context.reports[0]["images_seen"], context.reports[0]["step"]) == (20, 3)


def test_training_metrics_are_means_over_images() -> None:
    """Each report has the mean number of parts of its own epoch."""
    context = LocalContext()
    run(Regression(), context, 72, every=24)
    mean = float(data(24).z.whether.sum(1).float().mean())
    assert [r["train/parts"] for r in context.reports] == pytest.approx([mean] * 3)


def test_validation_metrics_are_sums_over_counts() -> None:
    """Each of 10 images in micro-batches of 4, 4 and 2 has the same weight."""
    objective = Regression()
    valid = data(10, 1)
    means = Run(objective, settings(), 5, LocalContext()).validate(valid)
    with torch.no_grad():
        errors = objective._errors(valid, 0.0, torch.Generator())
    assert means == {"error": pytest.approx(float(errors.double().mean()))}
    assert objective.training


class Halving(Regression):
    """Notes the half of a number that is just above the normal ones."""

    halves: ClassVar[list[float]] = []

    def forward(self, *arguments: Any) -> Any:
        self.halves.append(float(torch.tensor(2e-38) / 2))
        return super().forward(*arguments)


def test_training_alone_takes_numbers_below_the_normal_ones_for_0() -> None:
    """Also after a failed training. Hypothesis, for one, refuses to work in a thread that does."""
    assert float(torch.tensor(2e-38) / 2) > 0
    Halving.halves.clear()
    with pytest.raises(KeyboardInterrupt):
        run(Halving(), LocalContext(), 24, stop_at=8)
    assert set(Halving.halves) == {0.0}
    assert float(torch.tensor(2e-38) / 2) > 0


def test_the_average_of_the_weights_is_that_of_a_loop_in_numpy() -> None:
    trained = Run(Regression(), settings(average_images=40), 0, LocalContext())
    assert trained.average is not None
    expected = {name: value.double().numpy().copy() for name, value in trained.average.weights.items()}
    feed = MemoryFeed(data(64), Share(8, 0)).steps(0)
    for step in range(40):
        trained.update(step, next(feed), 1000)
        kept = min(np.exp(-8 / 40), (1 + step) / (checkpoint.START + step))
        for name, value in trained.objective.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * value.detach().double().numpy()
    for name, average in trained.average.weights.items():
        np.testing.assert_allclose(average, expected[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(average, dict(trained.objective.named_parameters())[name])


def test_validation_sees_the_average_and_a_stage_passes_it_on(tmp_path: Path) -> None:
    config, context, objective = settings(average_images=40), LocalContext(tmp_path), Regression()
    run(objective, context, 80, every=80, config=config)
    (record,) = context.reports
    (path,) = tmp_path.glob("checkpoint_*")
    tensors, _ = checkpoint.read(path)
    passed_on = Regression()
    passed_on.load_state_dict(checkpoint.weights(tensors))
    again = Run(passed_on, config, 5, LocalContext()).validate(data(10, 1))
    assert {f"valid/{name}": value for name, value in again.items()}.items() <= record.items()
    for name, value in objective.state_dict().items():
        assert torch.equal(value, tensors[f"trained/{name}"])
        assert not torch.equal(value, passed_on.state_dict()[name])


def test_one_broken_step_is_skipped_and_counted() -> None:
    """Weights, moments and their count do not change, so the next steps equal those of a run without it."""
    whole, broken = (Run(Regression(noise=0.0), settings(), 5, LocalContext()) for _ in range(2))
    batches = [next(MemoryFeed(data(24), Share(8, 5)).steps(step)) for step in range(3)]
    for step in (0, 2):
        whole.update(step, batches[step], 48)
    for step in range(3):
        vars(broken.objective)["breaks_at"] = lambda progress, now=step: now == 1
        broken.update(step, batches[step], 48)
    assert_equal(whole.objective, broken.objective)
    assert broken.skipped.tolist() == [0, 1]
    assert math.isfinite(float(broken.loss or "nan"))
    assert not broken.is_broken(3)
    assert broken.meters.stacked()[broken.meters.names().index("skipped_steps")].tolist() == [1, 3]
    broken.skipped.copy_(torch.tensor([0.0, 3.0]))
    assert not broken.is_broken(999)
    assert broken.is_broken(2999)
    assert not broken.is_broken(3000)
    broken.first = 2000  # a start that went on from there, after the cause was mended
    assert not broken.is_broken(2999)
    assert broken.is_broken(3000)
    broken.skipped.copy_(torch.tensor([10.0, 10.0]))
    assert broken.is_broken(100_000)
