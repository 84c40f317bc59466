"""Temperatures of the posterior: they raise the bound, undo a sharpening, and travel with the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import RATIO, TRIES, fit_temperature
from npdraw_dist.pipeline.models import load_npdraw
from tests.helpers.tiny_models import tiny_model, tiny_spec

GREY: dict[str, Any] = {"image_shape": (1, 7, 8), "patch": 3, "stride": 3, "parts": 4, "steps": 9}


def grey_model(order: str) -> NPDraw:
    """Its best temperatures lie within the limits of the search."""
    spec = tiny_spec(order, **(GREY if order == "aligned" else GREY | {"steps": 3}))
    return tiny_model(spec, seed=4)


def images(n: int) -> Tensor:
    return (torch.rand(n, 1, 7, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def elbo(model: NPDraw, x: Tensor) -> float:
    return float(model.importance(x, 8, torch.Generator().manual_seed(3)).analytic.mean())


def temperatures(model: NPDraw) -> list[float]:
    return list(model.temperature.tolist())


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_the_bound_rises_and_where_has_no_temperature(order: str) -> None:
    model, x = grey_model(order), images(32)
    before = elbo(model, x)
    fitted = fit_temperature(model, x, 8, 3)
    assert list(fitted.values()) == temperatures(model)
    assert elbo(model, x) > before
    assert fitted["where"] == 1
    assert all(
        value * 1.0001 >= RATIO**-TRIES and value <= RATIO**TRIES * 1.0001 for value in fitted.values()
    )


def test_logits_that_were_sharpened_are_cooled_by_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = grey_model("aligned"), images(32)
    fit_temperature(model, x, 8, 3)
    best, sharpened, infer = model.temperature.detach().clone(), RATIO**2, NPDraw.infer

    def sharper(self: NPDraw, x: Tensor) -> object:
        kept = self.temperature.detach().clone()
        self.temperature.data.copy_(kept * best / sharpened)
        q = infer(self, x)
        self.temperature.data.copy_(kept)
        return q

    monkeypatch.setattr(NPDraw, "infer", sharper)
    fitted = fit_temperature(model, x, 8, 3)
    assert fitted["whether"] == pytest.approx(sharpened, rel=0.3)
    assert fitted["what"] == pytest.approx(sharpened, rel=0.3)


def test_a_second_fit_finds_nothing_better() -> None:
    model, x = grey_model("aligned"), images(16)
    first = fit_temperature(model, x, 4, 0)
    assert fit_temperature(model, x, 4, 0) == first


def test_temperatures_are_saved(tmp_path: Path) -> None:
    model = grey_model("raster")
    model.temperature.data.copy_(torch.tensor([1.25, 2.0, 0.8]))
    model.save_pretrained(tmp_path)
    assert temperatures(load_npdraw(str(tmp_path))) == temperatures(model)
