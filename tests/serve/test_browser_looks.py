"""The studio's looks on a laptop and a phone, light and dark: contrast and names by axe-core; sizes; tabs."""

import re
from typing import Any

import pytest

from tests.helpers.studio import SIGHTS, Studio, violations

pytestmark = pytest.mark.slow

# Panels, and what is filled when they open.
PANELS = {"Parts": "", "Ideas": "proposals", "Next part": "next-parts", "Gallery": "gallery"}
PANELS |= dict.fromkeys(("Morph", "Open", "Save"), "")


@pytest.mark.parametrize("sight", SIGHTS)
def test_sizes_themes_contrast_names_and_roles(browser: Any, grey_address: str, sight: str) -> None:
    studio = Studio(browser, grey_address, sight)
    page, root = studio.page, studio.page.locator("html")
    page.get_by_text("Your turn").wait_for()
    assert root.evaluate("e => e.scrollWidth") <= page.viewport_size["width"]
    assert root.evaluate("e => e.scrollHeight") <= page.viewport_size["height"]  # nor need one scroll

    def light() -> bool:
        ground = root.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", ground)[:3])) > 3 * 128

    scheme = sight.split("-")[1]
    assert light() == (scheme == "light")
    found = violations(page)
    studio.press("Dark or light")
    assert light() == (scheme == "dark")
    for panel, filled in PANELS.items():
        studio.panel(panel)
        if panel == "Ideas":
            studio.press("Again")
        if filled:
            page.locator(f"#{filled} button").first.wait_for()
        studio.keep(f"panel-{panel.replace(' ', '-')}")
    # All panels at once: axe-core takes a second for each look.
    page.evaluate("document.querySelectorAll('.panel').forEach((one) => { one.hidden = false; })")
    assert found + violations(page) == []
    page.reload()
    page.wait_for_selector("#canvas-image[data-version='1']")
    assert light() == (scheme == "dark")  # it is remembered
    studio.close()


def test_on_a_phone_places_and_parts_are_as_large_as_a_finger(browser: Any, colour_address: str) -> None:
    studio = Studio(browser, colour_address, "phone-light")
    page = studio.page
    assert page.locator("#parts button").first.bounding_box()["width"] >= 40
    for target in page.locator("button:visible, select:visible, .segmented label:visible").all():
        if not target.evaluate("(one) => one.closest('#parts')"):
            assert target.bounding_box()["height"] >= 44, target.text_content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#parts button").first.tap()  # the tool Part
    canvas, well = (page.locator(name).bounding_box() for name in ("#canvas-a", "#card-a .well"))
    assert canvas["height"] / page.evaluate("model.rows") >= 38
    page.touchscreen.tap(well["x"] + 60, well["y"] + 20)
    studio.wait("image")
    assert [page.evaluate("brush")] in studio.parts().values()
    studio.close()


def test_the_tabs_work_by_keyboard(studio: Studio) -> None:
    page = studio.page
    page.get_by_role("tab", name="Parts").focus()
    for key, shown in (("ArrowLeft", "Morph"), ("ArrowRight", "Parts"), ("ArrowRight", "Ideas")):
        page.keyboard.press(key)
        assert page.get_by_role("tab", selected=True).text_content() == shown
    assert page.locator("#panel-bank").is_hidden()
    page.keyboard.press("ArrowLeft")
    page.locator("#parts [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    assert page.evaluate("tool()") == "paint"
