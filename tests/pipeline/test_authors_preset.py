"""Preset `authors`: its networks have the sizes of the authors' code, and a tiny form of it trains."""

from typing import Any

import pytest
import torch

from npdraw_dist.config.load import resolve
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.authors.training import AuthorsObjective
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline import prior, stage_job, train_stage, vae
from npdraw_dist.training.loop import Budget, Data, train
from tests.helpers.local_context import LocalContext

TINY: dict[str, Any] = {
    "bank": {"size": 5},
    "prior": {"depth": 1, "attention_heads": 2, "width": 8},
    "vae": {"encoder_width": 8, "decoder_width": 8, "decoder_depth": 1},
    "train": {"batch_size": 12, "micro_batch": 6},
}


def random_batch(n: int) -> Batch:
    images = torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8)
    z = PartSequence(
        torch.rand(n, 36) < 0.5, torch.arange(36).expand(n, -1).clone(), torch.randint(5, (n, 36))
    )
    return Batch.of(images, z)


def test_its_networks_are_of_the_authors_sizes() -> None:
    """Counted in their code. Their prior has positions for 36 x 36 + 1 tokens, of which 37 are ever used."""
    model = NPDraw(ModelSpec.of(resolve("authors", None, {})))
    sizes = {
        name: sum(p.numel() for p in getattr(model, name).parameters())
        for name in ("posterior", "decoder", "prior")
    }
    assert sizes == {"posterior": 947_772, "decoder": 1_118_337, "prior": 4_516_311 - (36 * 36 - 36) * 64}


def test_its_budget_and_schedules_are_those_of_661_epochs() -> None:
    experiment = resolve("authors", None, {})
    settings = experiment.vae
    assert settings.images == 661 * 59_000  # a thousand of MNIST's 60,000 images validate
    assert 60_000 * experiment.data.valid_fraction == pytest.approx(1000, abs=1)
    assert experiment.batch_of("prior")[0] == 64
    assert experiment.batch_of("vae")[0] == 500


def test_a_tiny_form_of_it_trains_both_stages_and_samples() -> None:
    torch.manual_seed(0)
    experiment = resolve("authors", None, TINY)
    parts = {"bank_parts": torch.rand(5, 1, 5, 5)}
    first = prior.make_objective(experiment, parts)
    weights = {f"prior.{name}": value for name, value in first.prior.state_dict().items()}
    second = vae.make_objective(experiment, {**parts, **weights})
    assert isinstance(second, AuthorsObjective)
    for stage, objective in (("prior", first), ("vae", second)):
        own = train_stage.with_settings_of(stage, experiment)
        before = {name: value.clone() for name, value in objective.named_parameters()}
        data = Data(stage_job.make_feed(random_batch(24), own), random_batch(6))
        images = 2 * own.train.batch_size
        summary = train(objective, data, own.train, Budget(images, images), 0, LocalContext())
        assert summary["images"] == images
        for name, value in objective.named_parameters():
            frozen = stage == "vae" and (name.startswith("model.prior.") or name == "model.temperature")
            assert value.isfinite().all(), name
            assert torch.equal(value, before[name]) == frozen, name
    model = second.model.eval()
    assert model.log_weights(torch.rand(2, 1, 28, 28).round(), 3).isfinite().all()
    z = model.sample_prior(4, torch.Generator().manual_seed(0))
    assert (z.where[z.whether] != torch.arange(36).expand(4, -1)[z.whether]).any(), "places are drawn"
    assert model.sample(4).shape == (4, 1, 28, 28)
