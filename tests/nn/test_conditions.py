"""A prior that is given a class or words: p(z|c) sums to 1, guidance, completion, and what training drops.

Shapes: N drawings, A tokens of a condition.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npdraw_dist.core.parts import Batch
from npdraw_dist.core.vocabulary import Classes, Words, learned
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.nn.prior import DROPPED, WORD_DROPPED, dropped
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import (
    all_sequences,
    assert_draws_follow,
    assert_sums_to_one,
    random_drawings,
    seeded,
    shaken,
    tiny_model,
    tiny_spec,
)

CLASSES = ("cat", "dog", "bird")
WORDS = learned({"red": 3, "reddish": 2, "dark": 5, "darkest": 1, "skin": 2})
ORDERS = ["aligned", "raster"]


def spec_of(order: str, condition: str = "class", **changes: Any) -> Any:
    spec = tiny_spec(order, **changes)
    entries = CLASSES if condition == "class" else WORDS
    prior = spec.prior.model_copy(update={"condition": condition, "vocabulary": entries})
    return spec.model_copy(update={"prior": prior})


def model_of(order: str, condition: str = "class", **changes: Any) -> NPDraw:
    model = tiny_model(spec_of(order, condition, **changes))
    shaken(model.prior.told, 0.7)  # type: ignore[arg-type]  # so that classes differ
    return model


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.0])
def test_probabilities_sum_to_one_at_each_guidance(order: str, guidance: float) -> None:
    model = model_of(order)
    assert_sums_to_one(model.given("dog", guidance).prior_log_prob(all_sequences(model.spec)))


@pytest.mark.parametrize("condition", ["class", "words"])
def test_guidance_0_and_1_are_the_plain_and_the_conditional_prior(condition: str) -> None:
    model = model_of("raster", condition)
    z, name = random_drawings(model.spec, 16), "dog" if condition == "class" else "dark skin"
    tokens = model.vocabulary.rows([name])
    plain, conditional = model.prior.log_prob(z), model.prior.log_prob(z, tokens)
    assert not torch.allclose(plain, conditional, atol=1e-3)
    torch.testing.assert_close(model.given(name, 0.0).prior_log_prob(z), plain)
    torch.testing.assert_close(model.given(name, 1.0).prior_log_prob(z), conditional)
    torch.testing.assert_close(model.prior.log_prob(z, torch.zeros_like(tokens)), plain)
    beyond = model.given(name, 2.0).prior(z)
    u, c = model.prior(z), model.prior(z, tokens)
    torch.testing.assert_close(beyond.what, 2 * c.what - u.what)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5])
def test_samples_have_the_frequencies_of_the_guided_prior(order: str, guidance: float) -> None:
    given = model_of(order).given("bird", guidance)
    support = all_sequences(given.spec)
    p = given.prior_log_prob(support).double().exp()
    assert_draws_follow(p, given.sample_prior(4000, generator=seeded()), support)


def test_each_drawing_has_its_own_condition() -> None:
    model = model_of("raster")
    names = [CLASSES[i % 3] for i in range(60)]
    z = model.draw(60, seed=0, condition=names).z
    rows = torch.cat([model.vocabulary.rows([name]) for name in names])
    states = torch.stack(list(model.prior.states(z, rows)), 1)
    torch.testing.assert_close(model.prior.logits(states, z.where).what, model.prior(z, rows).what)
    assert torch.equal(model.sample(3, seed=1, condition=1), model.sample(3, seed=1, condition="dog"))
    assert not torch.equal(
        model.draw(60, seed=0, condition="cat").z.what, model.draw(60, seed=0, condition="dog").z.what
    )


def test_a_class_may_be_a_number_of_numpy_or_torch() -> None:
    model = model_of("aligned", likelihood="bernoulli")
    x = torch.rand(3, 1, 2, 4, generator=seeded(3)).round()

    def outcome(condition: Any) -> list[Tensor]:
        drawn = model.draw(3, seed=0, condition=condition)
        done = model.complete(x, [], seed=0, condition=condition)
        loss, _ = model(x, condition, generator=seeded())
        return [drawn.z.whether, drawn.z.what, done.z.whether, done.z.what, loss.detach()]

    for same, expected in (
        ((torch.tensor([2, 0, 1]), np.array([2, 0, 1]), [np.int64(2), torch.tensor(0), 1]), [2, 0, 1]),
        ((torch.tensor(2), np.int64(2), "bird"), 2),
    ):
        for condition in same:
            assert all(map(torch.equal, outcome(condition), outcome(expected)))


def test_samples_have_the_guidance_that_the_model_keeps() -> None:
    """`given` has guidance 1, so that it scores by the trained p(z|c)."""
    model = model_of("aligned", guidance=3.0)
    z, keep = random_drawings(model.spec, 40), [0]
    drawn, done = model.draw(40, "cat", 0), model.complete(z, keep, seed=0, condition="cat")
    for guidance, same in ((3.0, True), (1.0, False)):
        other = model.draw(40, "cat", 0, guidance=guidance)
        assert torch.equal(drawn.images, other.images) is same
        again = model.complete(z, keep, seed=0, condition="cat", guidance=guidance)
        assert torch.equal(done.what, again.what) is same
    plain, guided = (model.given("cat", *guidance).prior_log_prob(z) for guidance in ((), (3.0,)))
    assert torch.equal(plain, model.given("cat", 1.0).prior_log_prob(z))
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"condition": -1}, "class .-1.; it knows cat"),
        ({"condition": "²"}, "does not know the class"),
        ({"condition": ["cat", "dog"]}, "2 conditions for 3 drawings"),
        ({"condition": "cat", "guidance": float("nan")}, "guidance is nan"),
        ({"condition": "cat", "guidance": float("inf")}, "guidance is inf"),
        ({"condition": 1.5}, "a class or words, not 1.5"),
        ({"condition": torch.ones(3, 1, dtype=torch.int64)}, r"a class or words, not \[1\]"),
        ({"guidance": 2.0}, "guidance 2.0 needs a condition"),
        ({"guidance": 1.0}, "guidance 1.0 needs a condition"),
    ],
)
def test_impossible_conditions_are_refused(options: dict[str, Any], says: str) -> None:
    model = model_of("aligned")
    with pytest.raises(UserError, match=says):
        model.draw(3, seed=0, **options)
    with pytest.raises(UserError, match=says):
        model.complete(random_drawings(model.spec, 3), [], seed=0, **options)


@pytest.mark.parametrize("number", [2, 4])
def test_a_model_that_is_given_several_conditions_has_as_many_drawings(number: int) -> None:
    several = model_of("aligned").given(["cat", "dog"] * (number // 2))
    with pytest.raises(UserError, match=f"given {number} conditions, for 3 drawings"):
        several.draw(3)
    assert len(several.draw(number, seed=0)) == number
    with pytest.raises(UserError, match=f"given {number} conditions; give them to `complete`, not `given`"):
        several.complete(random_drawings(several.spec, number), [])
    for ask in (several.prior_log_prob, several.surprise):
        assert len(ask(random_drawings(several.spec, number))) == number
        with pytest.raises(UserError, match=f"given {number} conditions, for {2 * number} drawings"):
            ask(random_drawings(several.spec, 2 * number))
    with pytest.raises(UserError, match="log_weights takes one"):
        several.log_weights(torch.zeros(number, 1, 2, 4))


def test_a_model_under_a_condition_is_not_saved(tmp_path: Path) -> None:
    """A model that was saved before stays whole."""
    model = model_of("aligned")
    model.save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    for name in ("model", "new"):
        with pytest.raises(UserError, match="has a condition; save"):
            model.given("cat").save_pretrained(tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_another_condition_takes_the_place_of_the_first() -> None:
    model = model_of("aligned")
    with pytest.raises(UserError, match="already has a condition"):
        model.given("cat")(torch.zeros(3, 1, 2, 4), "dog")
    z, given = random_drawings(model.spec, 8), model.given("cat")
    assert torch.equal(given.given("dog").prior_log_prob(z), model.given("dog").prior_log_prob(z))
    x = torch.rand(6, 1, 2, 4, generator=seeded(3)).round()
    assert torch.equal(given.classify(x, k=50), model.classify(x, k=50))


def test_a_completion_follows_its_condition() -> None:
    """If all places are free, completions are samples of p(z|c)."""
    model = model_of("aligned")
    z = random_drawings(model.spec, 2)
    keep = torch.zeros(model.spec.grid.places, dtype=torch.bool)
    many = type(z)(*(value[:1].expand(3000, -1) for value in vars(z).values()))
    done = model.complete(many, keep, seeded(), condition=["cat", "dog"] * 1500, guidance=1)
    for number, name in enumerate(("cat", "dog")):
        share = done.whether[number::2].double().mean(0)
        support = all_sequences(model.spec)
        p = model.given(name).prior_log_prob(support).double().exp()
        expected = (p[:, None] * support.whether).sum(0)
        assert (share - expected).abs().max() < 0.05


def test_a_class_is_that_of_the_highest_likelihood() -> None:
    """Images decoded from drawings of one class, of a model whose classes draw different parts."""
    model = model_of("aligned", likelihood="bernoulli")
    x = torch.rand(6, 1, 2, 4, generator=seeded(3)).round()
    found = model.classify(x, k=400)
    bounds = torch.stack(
        [model.given(name).log_weights(x, 400, generator=seeded()).logsumexp(0) for name in CLASSES]
    )
    best, second = bounds.sort(0, descending=True).values[:2]
    clear = best - second > 0.2
    assert clear.any()
    assert torch.equal(found[clear], bounds.argmax(0)[clear])


def test_the_number_of_a_class_is_its_name_if_all_names_are_numbers() -> None:
    """A number that `classify` returns is a valid condition for the same class."""
    vocabulary = Classes(("1", "10", "2"), 1)
    assert vocabulary.rows([1, 10, 2]).flatten().tolist() == [1, 2, 3]
    assert vocabulary.rows(vocabulary.labels).flatten().tolist() == [1, 2, 3]
    with pytest.raises(UserError, match="class '0'"):
        vocabulary.rows([0])
    named = Classes(("1", "cat"), 1)
    assert named.rows([0, 1, "1"]).flatten().tolist() == [1, 2, 1]
    assert named.rows(named.labels).flatten().tolist() == [1, 2]


def test_a_condition_moves_with_its_model() -> None:
    prior: Any = model_of("aligned").given("cat", guidance=2.0).to("meta").prior
    tokens = [condition for condition in prior._conditions() if condition is not None]
    assert [condition.device.type for condition in tokens] == ["meta"]


def test_unknown_conditions_are_refused_with_known_ones() -> None:
    model, words, plain = model_of("aligned"), model_of("aligned", "words"), tiny_model(tiny_spec())
    for name, says in (("dot", "'dot'; it knows cat, "), (3, "'3'; it knows cat"), ("3", "'3'; it knows")):
        with pytest.raises(UserError, match=says):
            model.draw(1, condition=name)
    for text, says in (
        ("red darke", "word 'darke'; it knows .*dark"),
        ("red " * 9, "more than 8 words"),
        (": -", "no word"),
    ):
        with pytest.raises(UserError, match=says):
            words.draw(1, condition=text)
    with pytest.raises(UserError, match=r"the class '1x1' .near: 121, 1"):
        Classes([str(number) for number in range(100, 130)], 1).requested("1x1")
    with pytest.raises(UserError, match="takes no condition"):
        plain.draw(1, condition="cat")
    with pytest.raises(UserError, match="no classes"):
        words.classify(torch.zeros(1, 1, 2, 4))


def test_words_that_training_did_not_have_are_read_as_pieces() -> None:
    vocabulary = Words(WORDS, 8)
    known, other = vocabulary.read(["Dark skin", "darkskin"])
    assert known.tolist() == [vocabulary.numbers["dark"], vocabulary.numbers["skin"], *[0] * 6]
    spelled = [vocabulary.entries[token - 1].removeprefix("##") for token in other.tolist() if token]
    assert "".join(spelled) == "darkskin"
    assert vocabulary.read(["€", ""]).tolist() == [[0] * 8] * 2
    inner = vocabulary.inner()[vocabulary.numbers["reddish"]].tolist()
    assert vocabulary.numbers["reddish"] not in inner
    spelled = [vocabulary.entries[token - 1].removeprefix("##") for token in inner if token]
    assert "".join(spelled) == "reddish"
    assert set(vocabulary.known) == {"red", "reddish", "dark", "darkest", "skin"}


def test_training_drops_conditions_and_words_by_row() -> None:
    rows = 20_000
    full = torch.ones(rows, 8, dtype=torch.int64)
    found = dropped(full, seeded())
    none = (found.sum(1) == 0).double().mean()
    assert abs(none - DROPPED) < 0.01
    assert abs(found[found.sum(1) > 0].double().mean() - (1 - WORD_DROPPED)) < 0.01
    classes = dropped(torch.full((rows, 1), 2), seeded())
    assert abs((classes == 0).double().mean() - DROPPED) < 0.01


def test_a_prior_learns_what_a_class_draws() -> None:
    spec = spec_of("aligned")
    torch.manual_seed(0)
    model = NPDraw(spec)
    z = random_drawings(spec, 120)
    classes = z.what[:, 0] + 1  # the class is the first part
    batch = Batch.of(torch.zeros(120, 1, 2, 4, dtype=torch.uint8), z, classes[:, None])
    objective = PriorObjective(model.prior, 1e-2)
    optimizer = torch.optim.Adam(model.prior.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        objective(batch, 0.5, seeded())[0].mean().backward()
        optimizer.step()
    model.eval()
    drawn = [model.draw(200, seed=0, condition=name).z for name in CLASSES[:2]]
    first = [float(of.what[:, 0][of.whether[:, 0]].float().mean()) for of in drawn]
    assert first[0] < 0.1
    assert first[1] > 0.9
    assert objective.evaluate(batch, seeded())["nll"].mean() < -model.prior.log_prob(z).mean()
