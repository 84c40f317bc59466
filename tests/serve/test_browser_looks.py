"""The studio's looks on a laptop and a phone, light and dark: contrast and names by axe-core; sizes; tabs."""

import re
from typing import Any

import pytest

from tests.helpers.accessibility import violations
from tests.helpers.studio import SIGHTS, Studio

pytestmark = pytest.mark.slow

# Panels, and what is filled when they open.
PANELS = {
    "Bank": "",
    "Proposals": "proposals",
    "Next part": "next-parts",
    "Gallery": "gallery",
    **{"A → B": "", "Open": "", "Save": ""},
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_contrast_names_and_roles(browser: Any, grey_address: str, sight: str) -> None:
    studio = Studio(browser, grey_address, sight)
    studio.page.get_by_text("Your turn").wait_for()
    found = violations(studio.page)
    for panel, filled in PANELS.items():
        studio.panel(panel)
        if panel == "Proposals":
            studio.press("Again")
        if filled:
            studio.page.locator(f"#{filled} button").first.wait_for()
        studio.keep(f"panel-{panel.replace(' ', '-')}")
    # All panels at once: axe-core takes a second for each look.
    studio.page.evaluate("document.querySelectorAll('.panel').forEach((one) => { one.hidden = false; })")
    assert found + violations(studio.page) == []
    studio.close()


@pytest.mark.parametrize("sight", SIGHTS)
def test_nothing_hangs_over_the_edge_and_the_theme_turns(browser: Any, grey_address: str, sight: str) -> None:
    studio = Studio(browser, grey_address, sight)
    page, root = studio.page, studio.page.locator("html")
    assert root.evaluate("e => e.scrollWidth") <= page.viewport_size["width"]
    assert root.evaluate("e => e.scrollHeight") <= page.viewport_size["height"]  # nor need one scroll

    def light() -> bool:
        ground = root.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", ground)[:3])) > 3 * 128

    scheme = sight.split("-")[1]
    assert light() == (scheme == "light")
    studio.press("Dark or light")
    assert light() == (scheme == "dark")
    page.reload()
    page.wait_for_selector("#canvas-image[data-version='1']")
    assert light() == (scheme == "dark")  # it is remembered
    studio.close()


def test_on_a_phone_places_and_parts_are_as_large_as_a_finger(browser: Any, colour_address: str) -> None:
    studio = Studio(browser, colour_address, "phone-light")
    page = studio.page
    part = page.locator("#parts button").first.bounding_box()
    assert min(part["width"], part["height"]) >= 40
    for text in ("Draw", "Part", "Move", "Erase"):
        box = page.get_by_text(text, exact=True).bounding_box()
        assert min(box["width"], box["height"]) >= 36
    model = page.evaluate("model")
    page.locator("#parts button").first.tap()  # the tool Part
    box = page.locator("#canvas-a").bounding_box()
    assert box["height"] / model["rows"] >= 38
    part = page.evaluate("brush")
    well = page.locator("#card-a .well").bounding_box()
    page.touchscreen.tap(well["x"] + 60, well["y"] + 20)
    studio.wait("image")
    assert [part] in studio.parts().values()
    studio.close()


def test_a_fine_grid_fits_a_phone(browser: Any, grey_address: str) -> None:
    """16 x 16 places, as the page would get them of a 64 x 64 model."""
    studio = Studio(browser, grey_address, "phone-dark")
    page = studio.page
    page.evaluate(
        "Object.assign(model, {rows: 16, columns: 16, stride: 2, patch: 2});"
        "Object.assign(model, {canvas_width: 32, canvas_height: 32});"
        "document.querySelector('[name=tool][value=erase]').checked = true; toolChanged()"
    )
    canvas, well = (page.locator(name).bounding_box() for name in ("#canvas-a", "#card-a .well"))
    assert canvas["width"] >= 16 * 36  # it scrolls in its well
    assert well["width"] < 300
    assert page.locator("html").evaluate("e => e.scrollWidth") <= 390
    page.evaluate("document.querySelector('[name=tool][value=draw]').checked = true; toolChanged()")
    assert page.locator("#canvas-a").bounding_box()["width"] <= well["width"]  # the pad is seen whole
    studio.close()


def test_the_tabs_work_by_keyboard(studio: Studio) -> None:
    page = studio.page
    page.get_by_role("tab", name="Bank").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", selected=True).text_content() == "Save"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", selected=True).text_content() == "Proposals"
    assert page.locator("#panel-bank").is_hidden()
    page.keyboard.press("ArrowLeft")
    page.locator("#parts [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    assert page.evaluate("tool()") == "paint"
