"""The editor on Ray Serve, driven by a real browser; then more requests than it takes.

Screenshots are kept in the folder of the environment variable SCREENSHOTS, where it is set.
"""

import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.editor_models import GREY, pixels, png_of, save_model

pytestmark = pytest.mark.ray

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("served"), GREY)


@pytest.fixture(scope="module")
def address(local_ray: None, model: Path) -> Iterator[str]:
    """A server of a small model, at work on up to 4 requests, with up to 8 that wait."""
    from ray import serve

    from npdraw_dist.serve.deploy import ServeOptions, deploy

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deploy(str(model), ServeOptions("127.0.0.1", port, ongoing=4, queued=8))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: the page is not tested (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


class Editor:
    """The page as a person sees it."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.foreign: list[str] = []
        self.page.on("request", lambda r: self.foreign.append(r.url) if not _own(r.url, address) else None)
        self.page.goto(address)
        self.versions = {"image": 0, "b": 0}
        self.wait("image")
        self.wait("b")

    def wait(self, name: str) -> None:
        """Until the picture is a newer one than last time."""
        self.versions[name] += 1
        self.page.wait_for_selector(f"#canvas-{name}[data-version='{self.versions[name]}']", timeout=20_000)

    def seen(self, name: str) -> bytes:
        """The pixels that a canvas shows, without what lies over it on A and B."""
        return bytes(self.page.locator(f"#canvas-{name}").screenshot())

    def drag(self, name: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """From one point to another, in shares of the canvas."""
        box = self.page.locator(f"#canvas-{name}").bounding_box()
        points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=5)
        self.page.mouse.up()

    def keep(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def close(self) -> None:
        assert self.problems == []
        assert self.foreign == []
        self.context.close()


def _own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


@pytest.fixture
def editor(browser: Any, address: str) -> Iterator[Editor]:
    opened = Editor(browser, address, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield opened
    opened.close()


def test_a_region_of_b_goes_onto_a_and_back(editor: Editor) -> None:
    page, first = editor.page, editor.seen("image")
    page.get_by_label("seed of A").fill("7")
    page.get_by_role("button", name="Sample: A", exact=True).click()
    editor.wait("image")
    sampled = editor.seen("image")
    assert sampled != first
    page.get_by_label("seed of B").fill("8")
    page.get_by_role("button", name="Sample: B", exact=True).click()
    editor.wait("b")

    editor.drag("b", (0.1, 0.1), (0.9, 0.4))
    editor.wait("image")
    edited = editor.seen("image")
    assert edited != sampled
    editor.keep("edited-light")

    page.keyboard.press("Control+z")
    editor.wait("image")
    assert editor.seen("image") == sampled
    page.get_by_role("button", name="Redo").click()
    editor.wait("image")
    assert editor.seen("image") == edited

    editor.drag("b", (0.01, 0.01), (0.99, 0.99))  # the whole grid is B
    editor.wait("image")
    parts = page.locator("#fact-parts").text_content()
    page.get_by_label("seed of A").fill("8")
    whole = editor.seen("image")
    page.get_by_label("seed of A").press("Enter")
    editor.wait("image")
    assert editor.seen("image") == whole
    assert page.locator("#fact-parts").text_content() == parts


def test_pictures_lie_on_the_background_of_the_canvas(editor: Editor) -> None:
    page = editor.page
    wells = page.locator(".well, #parts button")
    colours = "all => [...new Set(all.map(one => getComputedStyle(one).backgroundColor))]"
    assert wells.evaluate_all(colours) == ["rgb(0, 0, 0)"]

    def on_white(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "background": "white"})

    page.route("**/model", on_white)
    page.reload()
    page.locator("#parts button").first.wait_for()
    assert wells.evaluate_all(colours) == ["rgb(255, 255, 255)"]


def test_the_drawing_is_replayed(editor: Editor) -> None:
    page, finished = editor.page, editor.seen("image")
    slider = page.get_by_label("Step of the drawing")
    slider.focus()
    slider.press("Home")
    page.get_by_text("0 of", exact=False).wait_for()
    assert editor.seen("image") != finished
    editor.keep("replay-start")
    slider.press("ArrowRight")
    page.get_by_text("1 of", exact=False).wait_for()
    slider.press("End")
    last = slider.get_attribute("max")
    page.locator("#step-text", has_text=f"{last} parts").wait_for()
    assert editor.seen("image") == finished
    page.get_by_role("button", name="Replay the drawing").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Replay the drawing").wait_for(timeout=20_000)
    assert editor.seen("image") == finished


def test_parts_by_hand_and_by_keyboard(editor: Editor) -> None:
    page, before = editor.page, editor.seen("image")
    page.get_by_role("radio", name="part 3", exact=True).click()
    editor.drag("a", (0.05, 0.05), (0.05, 0.05))
    editor.wait("image")
    painted = editor.seen("image")
    assert painted != before
    assert "part 3" in (page.locator("#readout-a").text_content() or "")

    page.locator("#canvas-a").focus()
    page.keyboard.press("Delete")  # where the last click was
    editor.wait("image")
    assert editor.seen("image") != painted
    page.get_by_text("Move", exact=True).click()
    editor.drag("a", (0.4, 0.4), (0.9, 0.9))
    editor.wait("image")
    page.locator("#canvas-b").focus()
    for key in ("ArrowDown", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    editor.wait("image")
    assert "row 3, column 3" in (page.locator("#live").text_content() or "")
    editor.keep("by-hand")


def test_a_picture_is_uploaded_and_results_are_downloaded(editor: Editor, tmp_path: Path) -> None:
    page = editor.page
    ink = np.zeros((60, 60), np.uint8)
    ink[20:40, 10:50] = 255
    (tmp_path / "ink.png").write_bytes(png_of(ink))
    page.get_by_label("file of A").set_input_files(tmp_path / "ink.png")
    editor.wait("image")
    page.get_by_alt_text("original image of A").wait_for()
    editor.keep("uploaded")

    found = {}
    for name in ("Image", "Canvas", "GIF", "z"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name, exact=True).click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        found[name] = path
    assert pixels(found["Image"].read_bytes()).shape == (1, 28, 28)
    assert pixels(found["Canvas"].read_bytes()).shape == (1, 28, 28)
    with Image.open(found["GIF"]) as gif:
        assert gif.format == "GIF"
    assert len(json.loads(found["z"].read_text())["z"]["whether"]) == 36

    shown = editor.seen("image")
    page.get_by_role("button", name="Test image: A").click()
    editor.wait("image")
    page.get_by_label("file of A").set_input_files(found["z"])  # the saved drawing comes back
    editor.wait("image")
    assert editor.seen("image") == shown

    (tmp_path / "no.png").write_bytes(b"no picture")
    page.get_by_label("file of B").set_input_files(tmp_path / "no.png")
    page.get_by_text("no readable picture", exact=False).wait_for()
    # The browser itself notes the 422 in its console.
    assert len(editor.problems) == 1
    assert "422" in editor.problems.pop()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone(browser: Any, address: str, scheme: str) -> None:
    size = {"width": 390, "height": 844}
    editor = Editor(
        browser, address, viewport=size, color_scheme=scheme, device_scale_factor=2, has_touch=True
    )
    editor.keep(f"phone-{scheme}")
    page = editor.page
    root = page.locator("html")
    page.locator("#card-a summary").click()
    page.get_by_role("button", name="Test image: A").click()
    editor.wait("image")
    editor.keep(f"phone-{scheme}-open")
    assert root.evaluate("e => e.scrollWidth") <= 390  # nothing hangs over the edge
    ground = root.evaluate("() => getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, ground[4:-1].split(","))) > 3 * 128
    assert light == (scheme == "light")
    page.get_by_role("button", name="Dark or light").click()
    assert root.get_attribute("data-theme") == ("light" if scheme == "dark" else "dark")
    box = page.locator("#canvas-b").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    editor.wait("image")
    editor.keep(f"phone-{scheme}-turned")
    editor.close()


def test_more_requests_than_it_takes_are_told_so(address: str) -> None:
    z = httpx.post(f"{address}/sample", json={"seed": 1}, timeout=60).json()["z"]

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{address}/steps", json={"z": z}, timeout=60)

    right = ask(0).content
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(ask, range(160)))
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}
    assert codes[200] >= 4
    assert all(answer.content == right for answer in answers if answer.status_code == 200)
    assert httpx.get(f"{address}/healthz", timeout=20).status_code == 200  # and goes on
