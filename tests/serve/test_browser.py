"""The studio in a browser: the first ten seconds, drawing by hand and with the prior, links, token."""

from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.core.parts import PartBank
from npdraw_dist.pipeline.trained_models import load_npdraw
from tests.helpers.serving import Served, serving
from tests.helpers.studio import Studio

pytestmark = pytest.mark.slow

PLACES = 36


@pytest.mark.parametrize("sight", ["desktop-dark", "phone-light"])
def test_the_first_ten_seconds(browser: Any, grey_address: str, sight: str) -> None:
    studio = Studio(browser, grey_address, sight, motion="no-preference")
    page, size = studio.page, studio.page.viewport_size
    for name in ("canvas-a", "canvas-b", "parts"):  # they are in sight without scrolling
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
        assert box["y"] + box["height"] <= size["height"]
    page.get_by_text("Your turn").wait_for(timeout=20_000)
    total = sum(map(len, studio.parts().values()))
    steps = [text for text in page.evaluate("replayed") if " of " in text]
    assert steps == [f"{step} of {total}" for step in range(total)]
    assert page.evaluate("flights") == total  # each part comes from the bank
    studio.until("!document.querySelector('.flying')")
    studio.press("Let it finish half of this")
    studio.wait("image")
    page.locator("#proposals button").first.wait_for()
    assert max(studio.parts()) < PLACES / 2
    assert studio.sent("complete")[-1]["keep"] == list(range(PLACES // 2))
    assert page.get_by_text("Your turn").is_hidden()
    studio.close()


@pytest.mark.parametrize("sight", ["desktop-light", "phone-dark"])
def test_typed_words_are_drawn(browser: Any, classes_address: str, sight: str) -> None:
    studio = Studio(browser, classes_address, sight)
    field = studio.page.get_by_label("What to draw")
    field.fill("c")
    values = studio.page.locator("#known option").evaluate_all("all => all.map((one) => one.value)")
    assert values == ["cat", "crow"]
    field.fill("crow")
    field.press("Enter")
    studio.wait("image")
    first = studio.parts()
    studio.press("Draw it")
    studio.wait("image")
    assert studio.parts() != first
    assert [body.get("condition") for body in studio.sent("sample")][-2:] == ["crow", "crow"]
    studio.press("Finish")
    studio.page.locator("#proposals button").first.wait_for()
    assert studio.sent("complete")[-1]["condition"] == "crow"
    field.fill("owl")
    field.press("Enter")
    studio.page.get_by_text("does not know the class 'owl'").wait_for()
    studio.problems.clear()  # the browser notes the refused request
    studio.close()


def test_a_model_without_condition_has_no_field(studio: Studio) -> None:
    assert studio.page.locator("#ask").is_hidden()


def test_surprise_is_shown_over_the_canvas(studio: Studio) -> None:
    studio.press("Close the invitation")
    before = studio.seen("a")
    studio.press("Surprise")
    studio.until("views.a.heat && views.a.heat.length === 36")
    shown = studio.seen("a")
    assert shown != before
    studio.panel("Gallery")  # another panel keeps it
    studio.until("views.a.heat && views.a.heat.length === 36")
    studio.press("Surprise")
    studio.until("!views.a.heat")
    assert studio.seen("a") == before


def test_the_first_picture_does_not_wait_for_the_examples(browser: Any, grey_address: str) -> None:
    waiting: list[Any] = []

    def hold(page: Any) -> None:
        page.route("**/v1/examples", lambda route: waiting.append(route))

    studio = Studio(browser, grey_address, "phone-dark", prepare=hold)
    assert studio.parts()
    assert len(studio.sent("sample")) == 2
    assert studio.page.locator("#examples button").count() == 0
    waiting[0].continue_()
    studio.page.locator("#examples button").first.wait_for()
    studio.close()


def test_each_stroke_is_parsed_and_changes_what_it_touches(studio: Studio) -> None:
    studio.press("Draw on a blank pad")
    studio.wait("image")
    assert studio.parts() == {}
    studio.drag("a", (0.25, 0.09), (0.75, 0.09))
    studio.wait("image")
    first = studio.parts()
    assert first
    assert max(first) < 6  # the first row of places
    studio.drag("a", (0.1, 0.75), (0.5, 0.75))
    studio.wait("image")
    both = studio.parts()
    assert {place: both.get(place) for place in range(6)} == {place: first.get(place) for place in range(6)}
    assert set(both) - set(first)
    assert all(body["invert"] == "no" for body in studio.sent("parse"))
    studio.press("Undo")
    studio.wait("image")
    assert studio.parts() == first
    studio.press("Finish")
    studio.page.get_by_text("The model follows your sketch.").wait_for(state="attached")
    assert studio.sent("complete")[-1]["sketch"] == list(first)
    assert studio.sent("complete")[-1]["keep"] == []
    studio.page.locator("#proposals button").first.click()  # its parts are no sketch
    studio.wait("image")
    studio.press("Finish")
    studio.page.get_by_text("the model draws the rest").wait_for(state="attached")
    assert studio.sent("complete")[-1]["sketch"] == []


def test_the_prior_finishes_what_was_begun(studio: Studio) -> None:
    page, begun = studio.page, studio.parts()
    half = {place: parts for place, parts in begun.items() if place < PLACES / 2}
    page.evaluate(f"erase([...Array({PLACES}).keys()].filter((place) => place >= {PLACES / 2}))")
    studio.wait("image")
    studio.press("Finish")
    cards = page.locator("#proposals button")
    cards.first.wait_for()
    assert cards.count() >= 4
    assert sorted(studio.sent("complete")[0]["keep"]) == sorted(half)
    page.locator("#temperature").fill("1.5")  # asks anew
    studio.press("Again")
    studio.until("!busy && document.querySelectorAll('#proposals button').length >= 4")
    requests = studio.sent("complete")
    assert len({body["seed"] for body in requests}) == len(requests) == 3
    assert requests[-1]["temperature"] == 1.5
    cards.nth(1).click()
    studio.wait("image")
    finished = studio.parts()
    assert {place: finished[place] for place in half} == half
    assert len(finished) > len(half)


def test_the_next_part(studio: Studio) -> None:
    page, plain = studio.page, studio.seen("a")
    studio.panel("Next part")
    parts = page.locator("#next-parts button")
    parts.first.wait_for()
    assert studio.seen("a") != plain  # the heat map
    x, y = studio.point("a", 0.9, 0.95)
    if studio.phone:
        page.touchscreen.tap(x, y)
    else:
        page.mouse.click(x, y)
    page.get_by_text("row 6, column 6;", exact=False).wait_for()
    assert studio.sent("next")[-1]["place"] == PLACES - 1
    name = parts.first.get_attribute("aria-label")
    parts.first.click()
    studio.wait("image")
    assert studio.parts()[PLACES - 1] == [int(name.split()[2].strip(","))]
    studio.panel("Parts")
    assert page.evaluate("views.a.heat") is None


def test_from_a_to_b_part_by_part(studio: Studio) -> None:
    page, a, image = studio.page, studio.parts(), studio.seen("image")
    studio.panel("Morph")
    page.wait_for_selector("#morph:not([max='0'])")
    slider = page.get_by_label("From the canvas to the other, part by part")
    slider.press("ArrowRight")
    assert studio.parts() == a  # a preview
    slider.press("End")
    assert studio.seen("image") != image
    studio.panel("Morph")  # again: the page shows A, from which it begins
    page.wait_for_selector("#morph:not([max='0'])")
    assert studio.seen("image") == image
    slider.press("End")
    studio.press("Keep this one")
    studio.wait("image")
    assert studio.parts() == studio.parts("b")
    studio.press("Undo")
    studio.wait("image")
    assert studio.parts() == a


def test_the_gallery_is_a_source(studio: Studio) -> None:
    page = studio.page
    studio.panel("Gallery")
    cards = page.locator("#gallery button")
    cards.first.wait_for()
    seen = cards.nth(3).locator("img").first.get_attribute("src")
    cards.nth(3).click()
    studio.wait("image")
    assert page.evaluate("png(drawings.a.canvas)") == seen
    studio.press("More samples")
    studio.until(f"document.querySelectorAll('#gallery img')[6].src !== '{seen}'")
    page.get_by_label("Seed of the gallery").fill("1")
    page.get_by_label("Seed of the gallery").press("Enter")
    studio.until(f"document.querySelectorAll('#gallery img')[6].src === '{seen}'")


def test_examples_are_chosen_for_a_and_b_and_a_link_shows_the_same(studio: Studio, browser: Any) -> None:
    page, chips = studio.page, studio.page.locator("#examples button")
    for name, canvas in (("canvas", "image"), ("borrow", "b")):
        before = studio.seen(canvas)
        page.get_by_text(f"to {name}", exact=True).click()
        chips.nth(2).click()
        studio.wait(canvas)
        assert studio.seen(canvas) != before
    assert studio.parts("b") == studio.parts("a")
    chips.nth(1).click()
    studio.wait("b")
    other = Studio(browser, studio.address, studio.sight, page.url.removeprefix(studio.address + "/"))
    shown = other.parts()
    assert (shown, other.parts("b")) == (studio.parts(), studio.parts("b"))
    assert other.page.get_by_text("Your turn").is_hidden()
    other.page.evaluate("location.hash = '#z=Qk'")
    other.page.get_by_text("The link does not say which model it was made with").wait_for()
    assert other.parts() == shown
    of = page.evaluate("model.hash")
    other.page.evaluate(f"location.hash = '#of={of}&z={page.evaluate('pack(drawings.b.z)')}'")
    other.wait("image")
    assert other.parts() == studio.parts("b")
    other.close()


def test_another_model_refuses_a_link_and_a_saved_drawing_and_names_their_model(
    studio: Studio, browser: Any, grey: Served, tmp_path: Path
) -> None:
    """The other model has as many parts and places."""
    model = load_npdraw(str(grey.folder))
    model.set_bank(PartBank(1 - model.bank.parts))
    model.save_pretrained(tmp_path / "negative" / "model")
    link = studio.page.url.removeprefix(studio.address + "/")
    with studio.page.expect_download() as waiting:
        studio.panel("Save")
        studio.press("z")
    waiting.value.save_as(tmp_path / "drawing.json")
    name = studio.page.evaluate("model.name")
    assert name == grey.folder.parent.name
    with serving(tmp_path / "negative" / "model") as address:
        other = Studio(browser, address, studio.sight, link)
        other.page.get_by_text(f"The link was made with the model {name}, not with negative").wait_for()
        shown = other.parts()
        assert shown != studio.parts()
        other.panel("Open")
        other.page.get_by_label("Picture or saved z").set_input_files(tmp_path / "drawing.json")
        other.page.get_by_text(f"The drawing was made with the model {name}, not with negative").wait_for()
        assert other.parts() == shown
        other.close()


def test_the_token_goes_into_a_header_and_into_no_link(browser: Any, grey_address: str) -> None:
    studio = Studio(browser, grey_address, "desktop-light")
    with studio.page.expect_navigation(wait_until="load"):
        studio.page.evaluate("location.hash = '#token=se+cret/=='")  # the link, opened in the same tab
    studio.page.wait_for_selector("#canvas-b[data-version]")
    with studio.page.expect_request("**/v1/decode") as waiting:
        studio.press("Clear the canvas")
    assert waiting.value.headers["authorization"] == "Bearer se+cret/=="
    studio.wait("image")
    assert "cret" not in studio.page.url
    studio.close()
