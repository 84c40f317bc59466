"""The scores of a batch on a model small enough to enumerate. k draws, B images, K parts."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.posterior import FreeHead, Posterior
from npdraw_dist.pipeline.scores import SCORING, bank_usage, part_counts, score, score_images
from npdraw_dist.training.feed import noise_seed
from tests.helpers.tiny_models import of_all_drawings, tiny_spec


@pytest.fixture(scope="module")
def model() -> NPDraw:
    torch.manual_seed(0)
    model = NPDraw(tiny_spec()).eval()
    model.set_bank(PartBank(torch.rand(2, 1, 2, 2)))
    assert isinstance(model.posterior, Posterior)
    assert isinstance(model.posterior.head, FreeHead)
    with torch.no_grad():
        for parameter in model.posterior.head.fit.parameters():
            parameter.zero_()  # a q that is sure of its parts would leave few draws that count
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 1, 2, 4), generator=generator, dtype=torch.uint8)


def test_the_nll_is_that_of_the_enumeration(model: NPDraw, images: Tensor) -> None:
    """The sum over all nine drawings."""
    with torch.no_grad():
        log_p = [of_all_drawings(model, image[None])[3] for image in (images > 127).float()]
    truth = -torch.stack(log_p).double().logsumexp(1)
    found = score_images(model, images, 4000, 0, 0, 0)
    error = np.sqrt(1 / found["effective_samples"])
    assert ((found["nll_iwae"] - truth).abs() < 5 * error).all()
    assert float(error.max()) < 0.08
    assert (-found["elbo"] > truth).all()


def test_each_number_is_its_formula(model: NPDraw, images: Tensor) -> None:
    """130 samples in chunks of 50, 50 and 30, each seeded by its number."""
    found = score_images(model, images, 130, 3, 7, 2)
    parts = []
    for number, size in enumerate((50, 50, 30)):
        generator = torch.Generator().manual_seed(noise_seed(3, SCORING, 7, 2, number))
        parts.append(model.importance((images > 127).float(), size, generator))
    log_w = torch.cat([part.log_w for part in parts]).double()
    analytic = torch.cat([part.analytic for part in parts]).double()
    weights = log_w.exp()
    expected = {
        "nll_iwae": -weights.mean(0).log(),
        "elbo": log_w.mean(0),
        "authors_estimator": -analytic.exp().mean(0).log(),
        "effective_samples": weights.sum(0) ** 2 / (weights**2).sum(0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    kl = found["kl_whether"] + found["kl_what"] + found["kl_where"]
    torch.testing.assert_close(found["reconstruction"] - kl, analytic.mean(0), rtol=1e-5, atol=1e-5)


def test_usage_of_the_bank(model: NPDraw, images: Tensor) -> None:
    z = model.encode((images > 127).float())
    expected = [int(((z.what == part) & z.whether).sum()) for part in range(2)]
    assert part_counts(model, images, 0, 0, 0).tolist() == expected
    found = bank_usage(torch.tensor([3, 0, 1, 0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found == {"bank_used": 0.5, "bank_perplexity": pytest.approx(math.exp(entropy))}
    assert bank_usage(torch.zeros(4, dtype=torch.int64)) == {"bank_used": 0.0, "bank_perplexity": 1.0}


def test_a_summary_of_batches_of_any_length_counts_each_image_once(model: NPDraw) -> None:
    """70 images are batches of 32, 32 and 6."""
    images = torch.randint(256, (70, 1, 2, 4), dtype=torch.uint8)
    found = score(model, Batch.of(images, PartSequence.empty(70)), 3, 0)
    values = torch.cat(
        [
            score_images(model, images[start : start + 32], 3, 0, 0, number)["nll_iwae"]
            for number, start in enumerate((0, 32, 64))
        ]
    )
    assert found["nll_iwae"] == pytest.approx(float(values.sum() / 70))
    assert found["nll_iwae_se"] == pytest.approx(float(values.std() / math.sqrt(70)))
    assert (found["n"], found["k"]) == (70, 3)
    assert found["bits_per_dim"] == pytest.approx(found["nll_iwae"] / (8 * math.log(2)))
