"""The exported page in a real browser: its numbers are torch's, and its buttons do what they say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.export_demo.page import Facts, demo_page
from npdraw_dist.nn import editing
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.steps import log_prob_steps
from tests.helpers.studio import SIGHTS, open_chromium, violations
from tests.helpers.tiny_models import random_drawings, shaken, tiny_model, tiny_spec

pytestmark = pytest.mark.slow

COLOUR = {"image_shape": (3, 16, 24), "downscale": 2, "patch": 4, "stride": 3, "binarize": "none"}
GREY = {"patch": 3, "stride": 2, "parts": 5}
MIXTURE = {"likelihood": "logistic_mixture", "components": 3, "latents": "map:2"}
ALONE = {"heads": "independent"}
# Between them every network, order, table, likelihood and background that the page draws.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {**GREY, "image_shape": (1, 7, 9), "steps": 12, "latents": 3},
    "emoji": {
        **{**COLOUR, **MIXTURE, "order": "raster", "table": "factorised", "parts": 7, "steps": 6},
        **{"background": "white", "decoder_depth": 2},
    },
    "path": {
        **{**GREY, "table": "pixels", "order": "path", "image_shape": (1, 11, 10), "latents": "map:2"},
        **{"decoder_depth": 0, "likelihood": "logistic", "binarize": "none", "steps": 8},
    },
    "authors": {**GREY, **ALONE, "network": "authors", "image_shape": (1, 9, 9), "steps": 16},
    "ranked": {
        **{**COLOUR, **ALONE, "order": "ranked", "parts": 4, "steps": 5},
        **{"likelihood": "logistic", "background": "white"},
    },
}
FACTS = Facts("A model <b>", "apache-2.0", 2.03, 1)
REPLAYED = "#play[aria-label='Replay the drawing']"
NUMBERED = """(() => {
  const {condition} = demo.model.spec, before = condition.entries;
  condition.entries = ["2", "4", "6"];
  try { demo.model.tokens("0"); return "drawn"; }
  catch (error) { return [error.message, demo.model.tokens("04")]; }
  finally { condition.entries = before; }
})()"""
PROBE = """(drawings) => drawings.map(({z, noise}) => {
  const {model} = demo, canvas = model.render(z);
  return {
    log_probs: [...model.logProbs(z)], canvas: [...canvas.data], mean: [...model.decode(canvas).data],
    drawn: [...model.decode(canvas, model.appearanceOf(canvas, noise && Float32Array.from(noise))).data],
  };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as opened:
        yield opened


def rounded(name: str, **condition: Any) -> NPDraw:
    """A model with random weights in float16 and parts in bytes, so that the file is exact.

    condition: settings of its prior, by which it takes a condition.
    """
    spec = tiny_spec(**SETTINGS[name])
    model = tiny_model(spec.model_copy(update={"prior": spec.prior.model_copy(update=condition)}))
    if condition:
        shaken(model.prior.told, 0.7)  # type: ignore[arg-type]  # so that words differ
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(value.half())
        model.prior.position.mul_(4).round_().div_(4)  # so that seeds differ
    model.bank_parts.mul_(255).round_().div_(255)
    model.prior.set_bank(model.bank_parts)
    return model


@contextmanager
def opened(browser: Any, folder: Path, model: NPDraw, **context: Any) -> Iterator[Any]:
    """The page at work. It requests nothing but the file, and shows no error."""
    file = folder / "demo.html"
    file.write_text(demo_page(model, FACTS), "utf-8")
    tab = browser.new_context(reduced_motion="reduce", **context).new_page()
    problems: list[str] = []
    requested: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-checked]", state="attached")
    assert tab.evaluate("document.documentElement.dataset.checked") == "right"
    assert tab.input_value("#temperature") == "2.03"
    yield tab
    assert problems == []
    assert [url for url in requested if not url.startswith("data:")] == [file.as_uri()]
    tab.context.close()


@pytest.fixture(scope="module", params=SETTINGS)
def shown(
    request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NPDraw, Any]]:
    """A model and its page."""
    model = rounded(request.param)
    with opened(browser, tmp_path_factory.mktemp(request.param), model) as tab:
        yield model, tab


def as_json(z: PartSequence, row: int) -> dict[str, Any]:
    return {key: values[row].tolist() for key, values in vars(z).items()}


@torch.no_grad()
def test_the_page_computes_what_torch_computes(shown: tuple[NPDraw, Any]) -> None:
    model, tab = shown
    z = random_drawings(model.spec, 3)
    if not model.spec.where_given:
        z = PartSequence(z.whether, torch.where(z.whether, z.where, 0), z.what).canonical()
    canvas = model.render(z)
    noises, mean = [None] * 3, model.decode(canvas)
    wanted = {"log_probs": log_prob_steps(model.prior(z), z), "canvas": canvas, "mean": mean, "drawn": mean}
    if model.appearance is not None:  # u is some standard deviations from the prior's mean
        p = model.appearance.prior(canvas)
        noise = torch.randn(p.mean.shape, generator=torch.Generator().manual_seed(4))
        noises = noise.flatten(1).tolist()
        wanted["drawn"] = model.decode(canvas, p.mean + p.log_std.exp() * noise)
        assert (wanted["drawn"] - mean).abs().max() > 0.01
    found = tab.evaluate(PROBE, [{"z": as_json(z, row), "noise": noises[row]} for row in range(3)])
    far = {
        key: float((torch.tensor([one[key] for one in found]) - values.flatten(1)).abs().max())
        for key, values in wanted.items()
    }
    # The table of the prior's running sum, or codes of parts, are rounded to float16 after they are made.
    prior = 5e-2 if model.spec.prior.table == "pixels" else 5e-3
    assert all(far[key] < (prior if key == "log_probs" else 1e-4) for key in far), far


WORDS = ("red", "big", "reddish", "##r", "##e", "##d", "##dish")


@torch.no_grad()
@pytest.mark.parametrize(("kind", "entries"), [("words", WORDS), ("class", ("cat", "a dog"))])
def test_the_page_draws_under_a_condition(
    browser: Any, tmp_path: Path, kind: str, entries: tuple[str, ...]
) -> None:
    """Under a typed condition log p is torch's, also with guidance, and a drawing follows."""
    model = rounded("digits", condition=kind, vocabulary=entries)
    text = "Big, reddish" if kind == "words" else "a dog"
    z = random_drawings(model.spec, 1)
    call = "([z, text, guidance]) => [...demo.model.logProbs(z, {tokens: demo.model.tokens(text), guidance})]"
    with opened(browser, tmp_path, model) as tab:
        for guidance in (1.0, 1.7):
            wanted = log_prob_steps(model.given(text, guidance).prior(z).float32(), z)[0]
            found = torch.tensor(tab.evaluate(call, [as_json(z, 0), text, guidance]))
            assert (found - wanted).abs().max() < 5e-3
            assert (found - log_prob_steps(model.prior(z), z)[0]).abs().max() > 0.01
        before = tab.evaluate("demo.drawings.a.z")
        tab.get_by_label("What to draw").fill(text)
        tab.get_by_role("button", name="Draw it").click()
        after = tab.evaluate("demo.drawings.a.z")
        assert after != before
        if kind == "class":
            assert tab.evaluate("[demo.model.tokens('1'), demo.model.tokens('cat')]") == [[2], [1]]
            # Where all classes are numbers, a number is a name.
            assert tab.evaluate(NUMBERED) == ["the model does not know “0”", [2]]
        tab.get_by_label("What to draw").fill("!!!")
        tab.get_by_role("button", name="Draw it").click()
        tab.get_by_text("has no word" if kind == "words" else "does not know").wait_for()
        tab.get_by_label("What to draw").fill("owl")
        tab.get_by_role("button", name="Draw it").click()
        tab.get_by_text("the model does not know “owl”").wait_for()
        assert tab.evaluate("demo.drawings.a.z") == after
        assert violations(tab) == []


def test_the_edits_of_the_page_are_those_of_the_library(shown: tuple[NPDraw, Any]) -> None:
    model, tab = shown
    order, places = model.spec.order, [1, 2]
    a, b = random_drawings(model.spec, 6, seed=1), random_drawings(model.spec, 6, seed=2)
    mask = torch.zeros(model.grid.places, dtype=torch.bool)
    mask[places] = True
    wanted = {
        "put": editing.put(a, 3, 1, order),
        "move": editing.move(a, 1, 0, order),
        "remove": editing.remove(a, mask, order),
        "compose": editing.compose(a, b, mask, order),
    }
    probe = """([drawings, places]) => drawings.map(([a, b]) => ({
      put: demo.model.put(a, 3, 1), move: demo.model.move(a, 1, 0), remove: demo.model.remove(a, places),
      compose: demo.model.compose(a, b, places),
    }))"""
    found = tab.evaluate(probe, [[[as_json(a, row), as_json(b, row)] for row in range(6)], places])
    for key, z in wanted.items():
        assert [steps_of(one[key]) for one in found] == [steps_of(as_json(z, row)) for row in range(6)]


@torch.no_grad()
def test_an_edited_drawing_keeps_what_parts_cannot_say(shown: tuple[NPDraw, Any]) -> None:
    """u stays where the canvas is unchanged; parts of another drawing bring their own u."""
    model, tab = shown
    first, second = model.draw(2, seed=1), model.draw(2, seed=2)
    mask = torch.zeros(model.grid.places, dtype=torch.bool)
    mask[:2] = True
    call = """([pairs, places]) => pairs.map((pair) => {
      const [a, b] = pair.map(({z, u}) => ({z, canvas: demo.model.render(z), u: u && Float32Array.from(u)}));
      const made = demo.model.composed(a, b, places);
      return [...demo.model.decode(made.canvas, made.u).data];
    })"""
    pairs = [[{"z": as_json(x.z, row), "u": u_of(x, row)} for x in (first, second)] for row in range(2)]
    found = torch.tensor(tab.evaluate(call, [pairs, [0, 1]]))
    wanted = model.compose(first, second, mask).images.flatten(1)
    assert (found - wanted).abs().max() < 1e-4


def u_of(drawn: Drawings, row: int) -> list[float] | None:
    return None if drawn.u is None else drawn.u[row].flatten().tolist()


def steps_of(z: dict[str, Any]) -> list[tuple[bool, int, int]]:
    return [(w, place, part) if w else (False, 0, 0) for w, place, part in zip(*z.values(), strict=True)]


def test_samples_follow_the_prior(browser: Any, tmp_path: Path) -> None:
    """The shares of *whether* and *what* of a step over many samples are the prior's probabilities."""
    model = rounded("digits")
    probe = """(count) => { const random = new NPDraw.Random(7), {steps, parts} = demo.spec, found = [];
      for (let i = 0; i < count; i += 1) found.push(demo.model.sample(random, 1));
      return found; }"""
    with opened(browser, tmp_path, model) as tab:
        drawn, again = tab.evaluate(probe, 400), tab.evaluate(probe, 400)
        prefix = tab.evaluate(
            "(z) => demo.model.sample(new NPDraw.Random(1), 1, {start: z, kept: 5})", drawn[0]
        )
    assert drawn == again
    assert [prefix[key][:5] for key in prefix] == [drawn[0][key][:5] for key in prefix]
    z = PartSequence(*(torch.tensor([one[key] for one in drawn]) for key in ("whether", "where", "what")))
    editing.checked(z, model.spec.steps, model.grid.places, model.spec.parts, True)
    with torch.no_grad():
        p = model.prior(z)
    expected = torch.sigmoid(p.whether).sum(0)  # each given what its own sample drew before
    spread = torch.sigmoid(p.whether).mul(torch.sigmoid(-p.whether)).sum(0).sqrt()
    assert ((z.whether.sum(0) - expected).abs() < 4.5 * spread).all()
    chance = p.what.softmax(-1)
    counts = torch.nn.functional.one_hot(z.what, model.spec.parts).sum(0)
    assert ((counts - chance.sum(0)).abs() < 4.5 * (chance * (1 - chance)).sum(0).sqrt()).all()


def test_a_browser_that_computes_otherwise_says_so(browser: Any, tmp_path: Path) -> None:
    page, changed = re.subn(r'"log_prob": -[\d.]+', '"log_prob": -1.5', demo_page(rounded("digits"), FACTS))
    assert changed == 1
    (tmp_path / "demo.html").write_text(page, "utf-8")
    tab = browser.new_page(reduced_motion="reduce")
    tab.goto((tmp_path / "demo.html").as_uri())
    tab.wait_for_selector("html[data-checked]", state="attached")
    assert "wrongly: log p(z) is -" in tab.get_by_role("alert").text_content()
    tab.close()


def drawing(tab: Any, name: str = "a") -> dict[str, Any]:
    return dict(tab.evaluate(f"demo.drawings.{name}.z"))


def click(tab: Any, canvas: str, row: float, column: float) -> None:
    """Clicks a point that is given in places from the upper left corner."""
    box = tab.locator(f"#canvas-{canvas}").bounding_box()
    grid = tab.evaluate("demo.spec.grid")
    x, y = (at * grid["stride"] / grid[side] for at, side in ((column, "width"), (row, "height")))
    tab.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def at(z: dict[str, Any], place: int) -> list[int]:
    """The parts that a drawing has at a place."""
    return [what for whether, where, what in zip(*z.values(), strict=True) if whether and where == place]


def test_it_samples_and_edits_by_clicks(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, rounded("digits"), viewport={"width": 1280, "height": 800}) as tab:
        first, place = drawing(tab), 1 * 4 + 2
        tab.get_by_label("Seed of your drawing").fill("5")
        tab.keyboard.press("Enter")
        sampled = drawing(tab)
        assert sampled != first
        tab.get_by_role("radio", name="part 3").click()
        click(tab, "a", 1.5, 2.5)
        put = drawing(tab)
        assert at(put, place) == [3]
        tab.get_by_text("Erase", exact=True).click()
        click(tab, "a", 1.5, 2.5)
        assert at(drawing(tab), place) == []
        tab.get_by_role("button", name="Undo").click()
        tab.keyboard.press("Control+z")
        assert drawing(tab) == sampled
        tab.get_by_role("button", name="Redo").click()
        assert drawing(tab) == put
        click(tab, "b", 0.5, 0.5)
        assert at(drawing(tab), 0) == at(drawing(tab, "b"), 0)


def test_it_replays_and_finishes(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, rounded("digits"), viewport={"width": 1280, "height": 800}) as tab:
        tab.get_by_role("radio", name="part 3").click()
        for column in (0.5, 1.5, 2.5):
            click(tab, "a", 1.5, column)
        before, whole = drawing(tab), tab.locator("#canvas-image").screenshot()
        parts = sum(before["whether"])
        slider = tab.get_by_label("Part of the drawing")
        slider.fill("1")
        assert tab.locator("#step-text").text_content() == f"1 of {parts}"
        assert tab.locator("#parts .drawn").count() == 1
        assert tab.locator("#canvas-image").screenshot() != whole
        slider.fill(str(parts - 1))
        kept = [step for step, on in enumerate(before["whether"]) if on][parts - 2] + 1
        tab.get_by_role("button", name="Finish from here").click()
        tab.wait_for_selector(REPLAYED)
        assert [drawing(tab)[key][:kept] for key in before] == [before[key][:kept] for key in before]
        parts = sum(drawing(tab)["whether"])
        slider.fill(str(parts - 1))
        tab.get_by_role("button", name="Replay the drawing").click()
        tab.wait_for_selector(REPLAYED, timeout=20_000)
        assert slider.input_value() == str(parts)


def test_it_works_by_keys_and_on_a_phone(browser: Any, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
    with opened(browser, tmp_path, rounded("emoji"), **phone) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.get_by_role("radio", name="part 2").tap()
        tab.locator("#canvas-a").focus()
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
        assert at(drawing(tab), 1) == [2]
        tab.keyboard.press("Delete")
        assert at(drawing(tab), 1) == []


@pytest.mark.parametrize("sight", SIGHTS)
def test_contrast_names_and_roles(browser: Any, tmp_path: Path, sight: str) -> None:
    with opened(browser, tmp_path, rounded("digits"), **SIGHTS[sight]) as tab:
        found = violations(tab)
        for details in tab.locator("details").all():
            details.evaluate("one => { one.open = true; }")
        assert found + violations(tab) == []
