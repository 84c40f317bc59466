"""The studio in a browser: edits by hand and by keyboard, the bank, files in and out."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.studio import Studio
from tests.helpers.studio_models import pixels, png_of

pytestmark = pytest.mark.slow

MAGIC = {
    "Picture": b"\x89PNG",
    "Smooth picture": b"\x89PNG",
    "Canvas": b"\x89PNG",
    "Strip": b"\x89PNG",
    "GIF": b"GIF8",
}
MAGIC |= {"PDF": b"%PDF", "z": b"{"}


def test_a_region_of_b_goes_onto_a_and_back(studio: Studio) -> None:
    page, first = studio.page, studio.parts()
    if studio.phone:
        page.locator("#canvas-b").tap()  # B becomes the large one; nothing is copied
        page.wait_for_selector(".stage[data-wide=b]")
        assert studio.parts() == first
    studio.drag("b", (0.1, 0.1), (0.9, 0.4))
    studio.wait("image")
    edited, b = studio.parts(), studio.parts("b")
    rows = {place: parts for place, parts in edited.items() if place < 18}
    assert rows == {place: parts for place, parts in b.items() if place < 18}
    assert {p: v for p, v in edited.items() if p >= 18} == {p: v for p, v in first.items() if p >= 18}
    page.keyboard.press("Control+z")
    studio.wait("image")
    assert studio.parts() == first
    studio.press("Redo")
    studio.wait("image")
    studio.press("Exchange")
    studio.wait("image")
    studio.wait("b")
    assert (studio.parts(), studio.parts("b")) == (b, edited)


def test_parts_by_hand_and_by_keyboard(studio: Studio) -> None:
    page = studio.page
    studio.blank()
    page.get_by_role("radio", name="part 3", exact=True).click()  # chooses the tool Part
    studio.drag("a", (0.05, 0.05), (0.05, 0.05))
    studio.wait("image")
    assert studio.parts() == {0: [3]}
    studio.drag("a", (0.05, 0.3), (0.4, 0.3))
    for _ in range(3):
        studio.wait("image")
    assert studio.parts() == {0: [3], 6: [3], 7: [3], 8: [3]}
    studio.tool("Move")
    studio.drag("a", (0.05, 0.05), (0.95, 0.95))
    studio.wait("image")
    assert studio.parts() == {6: [3], 7: [3], 8: [3], 35: [3]}
    studio.tool("Erase")
    studio.drag("a", (0.05, 0.3), (0.2, 0.3))
    studio.wait("image")
    assert studio.parts() == {8: [3], 35: [3]}
    page.locator("#canvas-a").focus()
    page.keyboard.press("Delete")  # where the last drag began
    studio.wait("image")
    page.locator("#canvas-b").focus()
    for key in ("ArrowDown", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    studio.wait("image")
    copied = {place: parts for place, parts in studio.parts("b").items() if place in (7, 8, 13, 14)}
    assert studio.parts() == {**copied, 35: [3]}
    assert "row 3, column 3" in (page.locator("#live").text_content() or "")


def test_the_drawing_is_replayed(studio: Studio) -> None:
    page, finished = studio.page, studio.seen("image")
    studio.press("Close the invitation")
    slider = page.get_by_label("Step of the drawing")
    page.evaluate("() => { for (let i = 0; i < 5; i += 1) find('step').dispatchEvent(new Event('input')); }")
    slider.press("Home")
    page.get_by_text("0 of", exact=False).wait_for()
    assert len(studio.sent("steps")) <= 1  # also if the slider moves before the answer
    assert studio.seen("image") != finished
    studio.press("Replay the drawing")
    page.get_by_role("button", name="Pause").wait_for()
    studio.press("Finish")  # shows the whole drawing again
    page.locator("#proposals button").first.wait_for(timeout=20_000)
    assert studio.seen("image") == finished


def test_only_the_first_button_or_finger_draws(studio: Studio) -> None:
    """Each stroke has the pen with which it began, also if it waits."""
    page, before = studio.page, studio.parts()
    studio.tool("Draw")
    page.locator("#canvas-a").click(button="right", position={"x": 30, "y": 30})
    page.locator("#canvas-a").dispatch_event(
        "pointerdown", {"pointerId": 9, "isPrimary": False, "clientX": 10, "clientY": 10}
    )
    assert page.evaluate("views.a.line") is None
    assert (studio.parts(), studio.sent("parse")) == (before, [])
    widths = page.evaluate(
        """() => { const find_ = find("pen-width"); find_.value = 3; const thin = penNow().width;
        find_.value = 25; return [thin, penNow().width]; }"""
    )
    assert widths == [3, 25]


def order(studio: Studio) -> list[int]:
    names = studio.page.locator("#parts button").evaluate_all("all => all.map(one => one.title)")
    return [int(name.split()[1]) for name in names]


@pytest.fixture
def coloured(browser: Any, colour_address: str) -> Iterator[Studio]:
    """The page of the colour model, whose places overlap, in a free order."""
    opened = Studio(browser, colour_address, "desktop-dark")
    yield opened
    opened.close()


def test_the_bank_is_sorted_and_searched_by_looks(coloured: Studio) -> None:
    page = coloured.page
    bank = page.evaluate("({size: bank.size, by_looks: bank.by_looks})")
    used = {part for parts in coloured.parts().values() for part in parts}
    assert set(order(coloured)[: len(used)]) == used
    sort = page.get_by_label("Order of the parts")
    sort.select_option("looks")
    assert order(coloured) == bank["by_looks"]
    sort.select_option("number")
    assert order(coloured) == list(range(bank["size"]))
    page.get_by_role("radio", name="part 4", exact=True).click()
    sort.select_option("similar")
    parts = np.array(page.evaluate("bank.looks.map(one => one.pixels)"))
    assert order(coloured) == np.argsort(((parts - parts[4]) ** 2).sum(1)).tolist()
    filters = page.get_by_label("Which parts are shown")
    names = filters.locator("option").all_text_contents()
    for group in (("dark", "middle", "bright"), names[names.index("grey") :]):
        shown: list[int] = []  # each part has one brightness, and one hue
        for name in group:
            filters.select_option(name)
            shown += order(coloured)
        assert sorted(shown) == list(range(bank["size"]))


def numbers(studio: Studio) -> np.ndarray:
    """u of the drawing A."""
    return np.frombuffer(base64.b64decode(studio.page.evaluate("drawings.a.z.u")), "<f4")


def test_a_colour_model_is_drawn_on_in_colour(coloured: Studio) -> None:
    page = coloured.page
    before = numbers(coloured)
    page.evaluate("erase(drawn(drawings.a.z).slice(0, 2))")
    coloured.wait("image")
    kept = numbers(coloured) == before  # where nothing was erased
    assert 0 < kept.sum() < len(kept)
    coloured.drag("a", (0.3, 0.3), (0.7, 0.3))
    coloured.wait("image")
    assert len(numbers(coloured)) == len(kept)
    coloured.blank()
    page.get_by_label("Colour of the pen").fill("#20c040")
    coloured.drag("a", (0.3, 0.3), (0.7, 0.3))
    coloured.wait("image")
    sent = pixels(coloured.sent("parse")[1]["image"])[:3].reshape(3, -1)
    assert (0x20, 0xC0, 0x40) in {tuple(pixel) for pixel in sent.T.tolist()}
    shape = page.evaluate("[model.image_height, model.image_width]")
    assert sent.shape[1] == shape[0] * shape[1]
    page.get_by_role("radio", name="part 3", exact=True).click()
    coloured.drag("a", (0.3, 0.3), (0.9, 0.3))
    coloured.wait("image")
    page.evaluate("queue.then(() => 0)")
    url, parts, u = page.url, coloured.parts(), numbers(coloured)
    assert set().union(*parts.values()) == {3}
    page.wait_for_timeout(100)
    coloured.until("!busy")
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector("#canvas-image[data-version='1']")
    assert coloured.parts() == parts
    np.testing.assert_allclose(numbers(coloured), u, rtol=2**-7)


def test_an_upload_shows_how_it_was_placed(studio: Studio, tmp_path: Path) -> None:
    ink = np.zeros((60, 80), np.uint8)
    ink[20:40, 10:50] = 255
    (tmp_path / "ink.png").write_bytes(png_of(ink))
    page = studio.page
    studio.panel("Open")
    page.get_by_label("Picture or saved z").set_input_files(tmp_path / "ink.png")
    studio.wait("image")
    text = page.locator("#placement-text")
    assert "cropped to" in (text.text_content() or "")
    first, original = studio.parts(), page.locator("#original").get_attribute("src")
    page.get_by_label("Crop of the upload").select_option("no")
    studio.wait("image")
    assert page.locator("#original").get_attribute("src") != original
    assert studio.parts() != first
    page.get_by_label("Inversion of the upload").select_option("yes")
    studio.wait("image")
    assert (text.text_content() or "").startswith("inverted")
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.get_by_label("Picture or saved z").set_input_files(tmp_path / "no.png")
    page.get_by_text("unreadable image", exact=False).wait_for()
    studio.refused(422)


def test_what_is_saved(studio: Studio, tmp_path: Path) -> None:
    page = studio.page
    studio.panel("Save")
    for name, magic in MAGIC.items():
        with page.expect_download() as waiting:
            studio.press(name)
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        assert path.read_bytes().startswith(magic), name
    assert len({path.name for path in tmp_path.iterdir()}) == len(MAGIC)
    # Each pixel of the model is a square of at least 1,024 / 28 pixels.
    large = pixels((tmp_path / "image.png").read_bytes())
    side = large.shape[-1] // 28
    assert large.shape[-2:] == (28 * side, 28 * side)
    assert side >= 36
    squares = large[0].reshape(28, side, 28, side)
    assert (squares == squares[:, :1, :, :1]).all()
    assert len(np.unique(large)) > 2
    saved = tmp_path / "drawing.json"
    assert len(json.loads(saved.read_text())["z"]["whether"]) == 36
    shown = studio.parts()
    studio.blank()
    studio.panel("Open")
    page.get_by_label("Picture or saved z").set_input_files(saved)  # the saved drawing comes back
    studio.wait("image")
    assert studio.parts() == shown
    page.get_by_label("Number of the test image").fill("3")
    studio.press("Show")
    studio.wait("image")


def test_pictures_lie_on_the_background_of_the_canvas(studio: Studio) -> None:
    page = studio.page

    def on_white(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "background": "white"})

    page.route("**/v1/model", on_white)
    page.reload()
    page.locator("#parts button").first.wait_for()
    colours = "all => [...new Set(all.map(one => getComputedStyle(one).backgroundColor))]"
    assert page.locator(".well, #parts button").evaluate_all(colours) == ["rgb(255, 255, 255)"]
