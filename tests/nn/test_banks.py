"""Swapped banks: a model whose table knows parts by their pixels draws with any other parts.

Shapes: K parts, N drawings.
"""

import pytest
import torch
from PIL import Image
from torch import Tensor

from npdraw_dist import PartBank
from npdraw_dist.core.images import to_pil
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import (
    GREY,
    all_drawings,
    all_sequences,
    assert_sums_to_one,
    random_drawings,
    seeded,
    tiny_model,
    tiny_spec,
)

SPEC = tiny_spec("raster", table="pixels")


def bank(k: int) -> PartBank:
    return PartBank(torch.rand(k, 1, 2, 2, generator=seeded(1)))


def swapped(k: int) -> tuple[NPDraw, NPDraw]:
    model = tiny_model(SPEC)
    return model, model.with_bank(bank(k))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_probabilities_sum_to_one_with_a_bank_of_another_size(k: int) -> None:
    _, other = swapped(k)
    assert other.spec.parts == len(other.bank) == k
    assert_sums_to_one(other.prior_log_prob(all_sequences(other.spec)))
    x = torch.rand(1, 1, 2, 4, generator=seeded(2)).round()
    q = other.infer(x)
    z = all_drawings(other.spec, other.bank_parts)
    assert_sums_to_one(other.layout.log_prob(q.tile(len(z)), z))


def test_a_bank_beside_another_has_the_parts_of_both() -> None:
    model, other = tiny_model(SPEC), bank(3)
    both = model.with_bank(model.bank.joined(other))
    assert both.spec.parts == SPEC.parts + 3
    assert torch.equal(both.bank_parts[SPEC.parts :], other.parts)
    assert_sums_to_one(both.prior_log_prob(all_sequences(both.spec)))
    # Also of parts on another device.
    assert PartBank(bank(2).parts.to("meta")).joined(bank(3)).parts.shape[0] == 5


def test_a_part_is_known_by_its_pixels_alone() -> None:
    """The same parts in another order give the same numbers for the same drawings."""
    model, _ = swapped(2)
    turned = model.with_bank(PartBank(model.bank_parts.flip(0)))
    z = random_drawings(SPEC, 16)
    same = type(z)(z.whether, z.where, SPEC.parts - 1 - z.what)
    torch.testing.assert_close(turned.prior_log_prob(same), model.prior_log_prob(z))
    torch.testing.assert_close(turned.render(same), model.render(z))
    x = torch.rand(3, 1, 2, 4, generator=seeded(2)).round()
    torch.testing.assert_close(turned.infer(x).what, model.infer(x).what.flip(-1))


def test_the_model_keeps_its_own_bank() -> None:
    model = tiny_model(SPEC)
    z, before = random_drawings(SPEC, 8), model.bank_parts.clone()
    nats = model.prior_log_prob(z)
    other = model.with_bank(bank(2))
    assert torch.equal(model.bank_parts, before)
    assert torch.equal(model.prior_log_prob(z), nats)
    assert not torch.allclose(other.prior_log_prob(z), nats)
    assert torch.equal(model.with_bank(model.bank).prior_log_prob(z), nats)


def test_a_swapped_bank_draws_and_saves(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, other = swapped(4)
    folder = tmp_path_factory.mktemp("model")
    other.save_pretrained(folder)
    again = NPDraw.from_pretrained(folder)
    assert torch.equal(again.sample(4, seed=0), other.sample(4, seed=0))
    assert int(other.sample_prior(64, seed=0).what.max()) > 1


def test_a_completion_that_fails_holds_no_codes() -> None:
    """A notebook keeps the error; meanwhile the prior must not use cached codes in place of new weights."""
    model = tiny_model(SPEC)
    z = random_drawings(SPEC, 2)
    with pytest.raises(TypeError) as kept:
        model.complete(z, [], generator="none")  # type: ignore[call-overload]
    before = model.prior_log_prob(z)
    with torch.no_grad():
        dict(model.prior.named_parameters())["drawn.look.first.weight"].mul_(3)
    assert not torch.equal(model.prior_log_prob(z), before)
    del kept


def test_banks_that_do_not_fit_are_refused() -> None:
    model = tiny_model(SPEC)
    larger, joint = PartBank(torch.rand(2, 1, 3, 3)), tiny_model(tiny_spec("raster"))
    authors = tiny_model(tiny_spec("aligned", "independent", "authors", **GREY))
    for says, call in (
        (r"parts of \(1, 3, 3\), and the model draws parts of \(1, 2, 2\)", lambda: model.with_bank(larger)),
        (r"prior\.table joint", lambda: joint.with_bank(bank(2))),
        ("the authors' model", lambda: authors.with_bank(bank(2))),
        (r"a bank cannot mix parts of \(1, 3, 3\)", lambda: bank(2).joined(larger)),
    ):
        with pytest.raises(UserError, match=says):
            call()


def pictures() -> Tensor:
    """Twelve images of 6 x 6 pixels, each of one of three textures."""
    textures = torch.tensor(
        [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 1], [0, 0, 0], [1, 1, 1]], [[1, 0, 1]] * 3]
    )
    return textures.repeat(4, 2, 2)[:, None].float()


def test_a_bank_of_images_has_their_patches() -> None:
    images = pictures()
    expected = {tuple(patch.flatten().tolist()) for patch in images[:, :, :3, :3]}
    as_bytes = (images * 255).byte()
    for given in (images, as_bytes, as_bytes[:, 0].numpy(), to_pil(images)):
        found = PartBank.of(given, size=3, patch=3)
        assert {tuple(part.flatten().tolist()) for part in found.parts} == expected


def test_images_of_which_no_bank_can_be_made() -> None:
    two_shapes = [Image.new("L", (6, 6)), Image.new("L", (9, 6))]
    for images, size, says in (
        (pictures(), 4, "different"),
        (pictures(), 0, "a bank: size"),
        (two_shapes, 2, "2 shapes"),
        (3, 2, "images must be"),
    ):
        with pytest.raises(UserError, match=says):
            PartBank.of(images, size=size, patch=3)


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_surprise_is_the_drawing_s_nats_by_place(order: str) -> None:
    model = tiny_model(tiny_spec(order, image_shape=(1, 4, 6), steps=6, parts=3))
    x = torch.rand(5, 1, 4, 6, generator=seeded(0)).round()
    found = model.surprise(x)
    assert found.shape == (5, 2, 3)
    z = model.encode(x)
    torch.testing.assert_close(model.surprise(z.canonical()), found)  # as a file or a browser has it
    if order == "aligned":
        torch.testing.assert_close(found.sum((1, 2)), -model.prior_log_prob(z))
    else:
        drawn = torch.zeros(5, 6, dtype=torch.int64).scatter_add(1, z.where, z.whether.long())
        assert torch.equal(found.flatten(1) > 0, drawn > 0)
