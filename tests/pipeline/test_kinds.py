"""The kinds with codes and with learned priors through the whole pipeline, in this process."""

from typing import Any

import pytest

import npdraw_dist
from npdraw_dist.config.schema import Experiment
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.nn.baselines.vqvae import VQVAE
from npdraw_dist.pipeline.store import fingerprint_of
from tests.pipeline.test_fit import SMALL, strokes

SIZES: dict[str, Any] = {"width": 8, "depth": 1, "hidden": 8, "latents": 4, "pseudo_inputs": 4, "codes": 6}


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["vqvae", "vamp", "flow"])
def test_a_kind_trains_scores_and_samples(kind: str) -> None:
    model = npdraw_dist.fit(strokes(), **SMALL, model={"kind": kind}, baseline=SIZES)
    assert isinstance(model, Baseline)
    assert (model.spec.kind, model.spec.latents) == (kind, 4)
    assert model.sample(3).shape == (3, 1, 12, 12)
    if isinstance(model, VQVAE):  # the network of section prior
        assert model.spec.prior is not None
        assert (model.spec.prior.width, model.spec.prior.depth) == (8, 1)


def test_only_kinds_with_codes_depend_on_the_prior() -> None:
    for kind, depends in {"vqvae": True, "vae": False, "vamp": False, "draw": False}.items():
        found = [
            fingerprint_of(
                Experiment.model_validate({"model": {"kind": kind}, "prior": {"depth": depth}}), "vae"
            )
            for depth in (2, 3)
        ]
        assert (found[0] != found[1]) == depends


def test_the_budget_of_the_prior_does_not_matter_to_codes() -> None:
    """They have no stage `prior`."""
    found = {
        fingerprint_of(
            Experiment.model_validate({"model": {"kind": "vqvae"}, "prior": {"images": images}}), "vae"
        )
        for images in (100, 200)
    }
    assert len(found) == 1
