"""Proposals of the prior against enumeration in tiny models, and the choice of examples."""

import pytest
import torch

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.serve import proposals
from tests.helpers.tiny_models import all_sequences, random_sequence, tiny_model, tiny_spec


def test_the_next_step_of_a_free_order_is_that_of_the_prior() -> None:
    model = tiny_model(tiny_spec("raster", image_shape=(1, 2, 6), parts=3))
    every = all_sequences(model.spec)
    p = model.prior_log_prob(every).double().exp()
    z = PartSequence(torch.tensor([[True, False]]), torch.tensor([[1, 0]]), torch.tensor([[2, 0]]))
    begun = every.whether[:, 0] & (every.where[:, 0] == 1) & (every.what[:, 0] == 2)
    p = p * begun / (p * begun).sum()
    found = proposals.next_part(model, z, None, 3)
    draws = every.whether[:, 1]
    at = torch.stack([(p * (draws & (every.where[:, 1] == place))).sum() for place in range(3)])
    torch.testing.assert_close(torch.tensor(found.places).to(at), at, atol=1e-5, rtol=0)
    assert found.stop == pytest.approx(float((p * ~draws).sum()), abs=1e-5)
    assert found.place == int(at.argmax())
    here = draws & (every.where[:, 1] == found.place)
    for part, chance in ((one.part, one.probability) for one in found.parts):
        expected = float((p * (here & (every.what[:, 1] == part))).sum() / at[found.place])
        assert chance == pytest.approx(expected, abs=1e-5)
    assert sum(one.probability for one in found.parts) == pytest.approx(1)
    full = PartSequence(torch.tensor([[True, True]]), torch.tensor([[0, 1]]), torch.tensor([[1, 1]]))
    found = proposals.next_part(model, full, None, 2)
    assert (sum(found.places), found.stop) == (0, 1)


def test_a_step_of_the_authors_model_may_draw_at_any_place() -> None:
    model = tiny_model(
        tiny_spec(image_shape=(1, 2, 6), steps=3, parts=3, network="authors", heads="independent")
    )
    z = PartSequence(
        torch.tensor([[True, False, False]]), torch.tensor([[2, 0, 0]]), torch.tensor([[1, 0, 0]])
    )
    found = proposals.next_part(model, z, None, 2)
    assert (found.places[2], found.place < 2) == (0, True)
    assert sum(found.places) + found.stop == pytest.approx(1)


def test_the_next_part_of_an_aligned_drawing_is_given_also_what_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposals, "PARTICLES", 4000)
    monkeypatch.setattr(proposals, "CONTEXTS", 300)
    model = tiny_model(tiny_spec(image_shape=(1, 2, 6), steps=3, parts=3), seed=1)
    every = all_sequences(model.spec)
    p = model.prior_log_prob(every).double().exp()
    z = PartSequence(
        torch.tensor([[False, False, True]]), torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 1]])
    )
    given = every.whether[:, 2] & (every.what[:, 2] == 1)
    p = p * given / (p * given).sum()
    new = every.whether[:, :2].double()
    share = new / new.sum(1, keepdim=True).clamp(min=1)
    found = proposals.next_part(model, z, None, 3)
    assert found.places[:2] == pytest.approx((p[:, None] * share).sum(0).tolist(), abs=0.03)
    assert (found.places[2], found.place < 2) == (0, True)
    assert found.stop == pytest.approx(float(p[new.sum(1) == 0].sum()), abs=0.03)
    assert sum(found.places) + found.stop == pytest.approx(1)
    drawn = p * every.whether[:, found.place]
    for part, chance in ((one.part, one.probability) for one in found.parts):
        expected = float((drawn * (every.what[:, found.place] == part)).sum() / drawn.sum())
        assert chance == pytest.approx(expected, abs=0.03)


def test_the_parts_of_a_place_are_removed_before_it_is_predicted() -> None:
    model = tiny_model(tiny_spec(image_shape=(1, 2, 6), steps=3, parts=3))
    where = torch.tensor([[0, 1, 2]])
    drawn = PartSequence(torch.tensor([[False, True, True]]), where, torch.tensor([[0, 2, 1]]))
    empty = PartSequence(torch.tensor([[False, False, True]]), where, torch.tensor([[0, 0, 1]]))
    one, other = (proposals.next_part(model, z, 1, 2) for z in (drawn, empty))
    assert [p.probability for p in one.parts] == [p.probability for p in other.parts]
    assert one.place == 1
    assert one.places[1] > 0


def test_examples_are_full_likely_and_different() -> None:
    model = tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4, parts=5))
    z = random_sequence(model.spec, 40)
    z = PartSequence.cat([z, z[:5]])
    rows, scores = proposals.likely(model, model.as_drawings(z), 4)
    parts = z.whether.sum(1)
    assert 1 < len(rows) <= 4
    assert (parts[rows] >= parts.float().median()).all()
    score = model.prior_log_prob(z) / parts.clamp(min=1)
    torch.testing.assert_close(scores, score[rows])
    assert float(scores[0]) == pytest.approx(float(score[parts >= parts.float().median()].max()))
    canvases = model.render(z[rows]).flatten(1)
    assert float((torch.cdist(canvases, canvases) + torch.eye(len(rows))).min()) > 0
    z.whether.fill_(False)
    assert len(proposals.likely(model, model.as_drawings(z), 2)[0]) == 0


def test_the_extent_of_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_spec(image_shape=(1, 8, 8), steps=16))
    model.bank_parts.fill_(1.0)
    whether = torch.zeros(3, 16).bool()
    whether[0, 0] = whether[1, [5, 6]] = whether[2, [4, 7]] = True  # sides of 2, 4 and 8 pixels
    z = PartSequence(whether, torch.arange(16).repeat(3, 1), torch.zeros(3, 16).long())
    monkeypatch.setattr(type(model), "sample_prior", lambda *_, **__: z)
    assert proposals.extent(model) == 0.5
    z.whether.fill_(False)
    assert proposals.extent(model) == 1.0
