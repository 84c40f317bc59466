"""Edits of every kind that has something of a region: what is swapped, and the numbers by hand.

Shapes: B images, H x W pixels.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.evaluate import edits
from npdraw_dist.evaluate.edits import measure_edits, random_regions
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_baselines import strokes, tiny_baseline
from tests.helpers.tiny_models import seeded, tiny_model, tiny_spec

LOCAL = ("npdraw", "vqvae", "map", "gaussian")


def model_of(kind: str) -> GenerativeModel:
    """Of images of 6 x 6 pixels, on places or cells of 3 or 4 pixels."""
    if kind == "npdraw":
        return tiny_model(tiny_spec(image_shape=(1, 6, 6), patch=3, stride=3, steps=4, parts=5))
    return tiny_baseline(kind, amount=0.5, codes=30)


@pytest.mark.parametrize("kind", [*LOCAL, "vae"])
def test_all_or_nothing_of_an_image_is_its_reconstruction(kind: str) -> None:
    model, (a, b) = model_of(kind), strokes(2).float()[:, None].div(255)
    all_of_it, nothing = torch.ones(1, 6, 6, dtype=torch.bool), torch.zeros(1, 6, 6, dtype=torch.bool)
    own = [model.swapped(x, x, nothing) for x in (a, b)]
    torch.testing.assert_close(model.swapped(a, b, nothing), own[0])
    if kind != "map":  # what it has of the whole image stays
        torch.testing.assert_close(model.swapped(a, b, all_of_it), own[1])
    assert not torch.allclose(own[0], own[1])


def test_a_place_is_swapped_if_its_centre_is_in_the_region() -> None:
    model, images = model_of("npdraw"), strokes(2).float() / 255
    masks = list[Tensor]()
    model.compose = lambda a, b, mask: masks.append(mask) or model.as_drawings(a)  # type: ignore
    inside = torch.zeros(1, 6, 6, dtype=torch.bool)
    inside[:, :3, 4:] = True  # the centre of place 1 is (1, 4)
    model.swapped(images[:1], images[1:], inside)
    assert masks[0].tolist() == [[False, True, False, False]]


def fake(swapped: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    return SimpleNamespace(as_input=lambda images: images.float() / 255, swapped=swapped)


PASTE = fake(lambda a, b, inside: torch.where(inside[:, None], b, a))
IGNORE = fake(lambda a, b, inside: a + 0.1)  # A, a little brighter, whatever is swapped


def test_the_numbers_are_squared_errors_in_the_region_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=seeded())
    exact = measure_edits(PASTE, images, 100, 0, lambda x: x.flatten(1))
    assert set(exact.values()) == {0.0}
    found = measure_edits(IGNORE, images, 100, 0, lambda x: x.flatten(1))
    for name in ("edit_outside", "pasted_inside", "pasted_outside", "reconstructed_inside"):
        assert found[name] == pytest.approx(0.01, rel=1e-4)
    # Two independent uniform pixels differ by 1/6 in the mean square.
    assert found["edit_inside"] == pytest.approx(1 / 6 + 0.01, rel=0.15)
    assert 0.1 < found["edit_features"] < 0.5  # about the share of the region
    assert found == measure_edits(IGNORE, images, 100, 0, lambda x: x.flatten(1))
    assert found["edit_inside"] != measure_edits(IGNORE, images, 100, 1)["edit_inside"]
    monkeypatch.setattr(edits, "AT_ONCE", 3)
    assert measure_edits(IGNORE, images, 100, 0, lambda x: x.flatten(1)) == pytest.approx(found)


def test_regions_are_rectangles_of_a_quarter_to_three_quarters_of_a_side() -> None:
    inside = random_regions(500, 8, 12, seeded())
    for sides, size in ((inside.any(2).sum(1), 8), (inside.any(1).sum(1), 12)):
        assert (int(sides.min()), int(sides.max())) == (size // 4, 3 * size // 4)
    area = inside.any(2).sum(1) * inside.any(1).sum(1)
    assert torch.equal(inside.sum((1, 2)), area)
    assert inside.any(0).all()


@pytest.mark.parametrize("kind", ["draw", "air"])
def test_kinds_without_regions_and_too_few_images_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"kind {kind} has no latents for single regions"):
        measure_edits(tiny_baseline(kind), strokes(4), 2, 0)
    with pytest.raises(UserError, match="takes two images"):
        measure_edits(tiny_baseline("vae"), strokes(1), 2, 0)
