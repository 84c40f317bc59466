"""Opens and uses the studio in headless Chromium.

Screenshots are kept in the folder of the environment variable SCREENSHOTS, where it is set.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP: dict[str, Any] = {"viewport": {"width": 1366, "height": 768}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    **{"device_scale_factor": 2, "has_touch": True, "is_mobile": True},
}
# Behaviour is tested on both sizes, each in one of the two colour schemes; looks in all four.
SIGHTS: dict[str, dict[str, Any]] = {
    f"{name}-{scheme}": {**size, "color_scheme": scheme}
    for name, size in (("desktop", DESKTOP), ("phone", PHONE))
    for scheme in ("light", "dark")
}

# Notes each text of the replay's step, and each part that sets out from the bank.
WATCH = """
window.replayed = []; window.flights = 0;
addEventListener("DOMContentLoaded", () => {
  const text = document.getElementById("step-text");
  if (!text) return;
  new MutationObserver(() => replayed.push(text.textContent)).observe(text, {childList: true});
  new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) => {
    flights += node.className === "flying";
  }))).observe(document.body, {childList: true});
});
"""


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A browser of Playwright. Skips the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: the page is not tested (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def violations(page: Any) -> list[tuple[str, str, str]]:
    """Rule, element and fault of each rule that the page breaks. Skips the test without axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [(one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in found]


class Studio:
    """One page of the studio. Requests are noted; errors and foreign requests fail at `close`."""

    def __init__(
        self,
        browser: Any,
        address: str,
        sight: str,
        path: str = "",
        motion: str = "reduce",
        prepare: Callable[[Any], None] = lambda page: None,
    ) -> None:
        self.sight, self.address = sight, address
        self.context = browser.new_context(**SIGHTS[sight], reduced_motion=motion)
        self.page = self.context.new_page()
        self.page.add_init_script(WATCH)
        self.problems: list[str] = []
        self.foreign: list[str] = []
        self.bodies: list[tuple[str, Any]] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("request", self._note)
        prepare(self.page)
        self.page.goto(f"{address}/{path}")
        self.versions = {"image": 0, "b": 0}
        self.wait("image")
        self.wait("b")

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)
        if request.method == "POST" and "json" in request.headers.get("content-type", ""):
            self.bodies.append((request.url.removeprefix(f"{self.address}/v1/"), request.post_data_json))

    @property
    def phone(self) -> bool:
        return self.sight.startswith("phone")

    def sent(self, path: str) -> list[Any]:
        """The bodies of the requests for the path, in order."""
        return [body for name, body in self.bodies if name == path]

    def wait(self, name: str) -> None:
        """Waits until the picture is newer than at the last call."""
        self.versions[name] += 1
        self.until(f"find('canvas-{name}').dataset.version >= {self.versions[name]}")

    def until(self, expression: str) -> None:
        """Waits until the expression is true. The page's policy forbids Playwright's way, which is eval."""
        stop = time.monotonic() + 20
        while not self.page.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < stop, expression
            self.page.wait_for_timeout(10)

    def parts(self, name: str = "a") -> dict[int, list[int]]:
        """Place -> its parts in the page's drawing A or B."""
        z = self.page.evaluate(f"drawings.{name}.z")
        found: dict[int, list[int]] = {}
        for whether, where, what in zip(z["whether"], z["where"], z["what"], strict=True):
            if whether:
                found.setdefault(where, []).append(what)
        return found

    def seen(self, name: str) -> bytes:
        """The pixels that a canvas shows."""
        return bytes(self.page.locator(f"#canvas-{name}").screenshot())

    def press(self, name: str) -> None:
        """Clicks, or on the phone taps, the button of this name."""
        button = self.page.get_by_role("button", name=name, exact=True)
        button.tap() if self.phone else button.click()

    def panel(self, name: str) -> None:
        """Opens a panel; Open and Save are buttons in the header, the others are tabs."""
        role = "button" if name in ("Open", "Save") else "tab"
        self.page.get_by_role(role, name=name, exact=True).click()

    def tool(self, name: str) -> None:
        self.page.locator("#canvas-a").scroll_into_view_if_needed()
        self.page.get_by_text(name, exact=True).click()

    def point(self, name: str, x: float, y: float) -> tuple[float, float]:
        box = self.page.locator(f"#canvas-{name}").bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def drag(self, name: str, *points: tuple[float, float]) -> None:
        """Drags from point to point, given in shares of the canvas."""
        (start, *others) = [self.point(name, *point) for point in points]
        self.page.mouse.move(*start)
        self.page.mouse.down()
        for end in others:
            self.page.mouse.move(*end, steps=5)
        self.page.mouse.up()

    def blank(self) -> None:
        self.press("Clear the canvas")
        self.wait("image")

    def keep(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}-{self.sight}.png")

    def refused(self, status: int) -> None:
        """Checks that one request was refused; the browser notes it in its console."""
        assert [str(status) in problem for problem in self.problems] == [True]
        self.problems.clear()

    def close(self) -> None:
        assert self.problems == [], "\n".join(self.problems)
        assert self.foreign == []
        self.context.close()
