"""The studio's HTTP API against the model itself; its limits and headers. No Ray."""

import base64
import hashlib
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image, ImageSequence
from starlette.testclient import TestClient

from npdraw_dist.core.errors import StorageFailed
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.pipeline.sample import ALIGNED_FRAMES
from npdraw_dist.serve import Serve
from npdraw_dist.serve.api import build_app
from npdraw_dist.serve.engine import Engine, open_engine
from npdraw_dist.serve.middleware import MAX_JSON_BYTES
from npdraw_dist.serve.replica import Replica
from npdraw_dist.serve.uploads import MAX_BYTES
from tests.helpers.studio_models import COLOUR, GREY, WITH_U, as_bytes, pixels, png_of, save_model

Json = dict[str, Any]
PAPER = "https://arxiv.org/abs/2106.13435"


class Served:
    """A client of the API, and the model that it should speak for."""

    def __init__(self, folder: Path) -> None:
        service = Replica(open_engine(str(folder)))
        self.app: FastAPI = build_app(lambda: service, Serve())
        self.client = TestClient(self.app, base_url="http://127.0.0.1")
        self.model = load_npdraw(str(folder))

    def post(self, path: str, body: Json, status: int = 200) -> Json:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def z(self, steps: Json) -> PartSequence:
        return PartSequence(*(torch.tensor([steps[name]]) for name in ("whether", "where", "what")))

    def check(self, drawing: Json) -> None:
        """Canvas, image and log p(z) are those of the z and u beside them."""
        z, u = self.z(drawing["z"]), drawing["z"]["u"]
        canvas = self.model.render(z)
        if u is not None:
            assert self.model.appearance is not None
            numbers = torch.frombuffer(bytearray(base64.b64decode(u)), dtype=torch.float32)
            u = numbers.view(1, *self.model.appearance.shape)
        np.testing.assert_array_equal(pixels(drawing["canvas"]), as_bytes(canvas[0]))
        off = pixels(drawing["image"]).astype(int) - as_bytes(self.model.decode(canvas, u)[0])
        assert np.abs(off).max() <= 1
        assert drawing["log_prior"] == pytest.approx(float(self.model.prior_log_prob(z)), abs=1e-3)
        assert drawing["parts"] == sum(drawing["z"]["whether"])


MODELS = {"grey": GREY, "colour": COLOUR, **WITH_U}


@pytest.fixture(scope="module", params=["grey", "colour", "map"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(save_model(tmp_path_factory.mktemp("model"), MODELS[request.param]))


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(save_model(tmp_path_factory.mktemp("model"), GREY))


def test_facts_and_bank(served: Served) -> None:
    facts = served.client.get("/v1/model").json()
    grid = served.model.grid
    assert (facts["rows"], facts["columns"], facts["stride"]) == (grid.rows, grid.columns, grid.stride)
    assert facts["test_images"] == (50 if facts["order"] == "aligned" else 0)
    bank = served.client.get("/v1/bank").json()
    sheet, side = pixels(bank["sheet"]), bank["patch"]
    assert bank["size"] == len(served.model.bank)
    for part, expected in enumerate(served.model.bank.parts):
        top, left = (side * value for value in divmod(part, bank["columns"]))
        np.testing.assert_array_equal(sheet[:, top : top + side, left : left + side], as_bytes(expected))
    assert served.client.get("/healthz").json()["status"] == "ok"


def test_a_sample_is_the_models_own(served: Served) -> None:
    drawing = served.post("/v1/sample", {"seed": 5, "temperature": 0.7})
    z = served.model.sample_prior(1, torch.Generator().manual_seed(5), 0.7)
    for name in ("whether", "where", "what"):
        assert drawing["z"][name] == getattr(z.canonical(), name)[0].tolist()
    served.check(drawing)
    assert served.post("/v1/decode", {"z": drawing["z"]}) == drawing
    assert served.post("/v1/sample", {"seed": 6})["canvas"] != drawing["canvas"]


def test_the_empty_region_is_a_and_the_whole_grid_is_b(served: Served) -> None:
    a, b = (served.post("/v1/sample", {"seed": seed}) for seed in (1, 2))
    request = {"a": a["z"], "b": b["z"]}
    everything = list(range(served.model.grid.places))
    assert served.post("/v1/compose", {**request, "places": []})["image"] == a["image"]
    whole = served.post("/v1/compose", {**request, "places": everything})
    assert whole["canvas"] == b["canvas"]
    if served.model.appearance is None:  # else what is nowhere drawn stays that of A
        assert whole["image"] == b["image"]
    half = served.post("/v1/compose", {**request, "places": everything[::2]})
    served.check(half)
    assert half["canvas"] not in (a["canvas"], b["canvas"])


def test_edits(served: Served) -> None:
    z = served.post("/v1/sample", {"seed": 1})["z"]
    emptied = served.post(
        "/v1/edit", {"z": z, "edit": {"kind": "remove", "places": list(range(served.model.grid.places))}}
    )
    assert (emptied["parts"], emptied["dropped"]) == (0, 0)
    assert pixels(emptied["canvas"]).max() == 0
    put = served.post("/v1/edit", {"z": emptied["z"], "edit": {"kind": "put", "place": 1, "part": 4}})
    moved = served.post("/v1/edit", {"z": put["z"], "edit": {"kind": "move", "source": 1, "target": 3}})
    swapped = served.post("/v1/edit", {"z": moved["z"], "edit": {"kind": "swap", "first": 3, "second": 1}})
    places = [[w for w, d in zip(e["z"]["where"], e["z"]["whether"], strict=True) if d] for e in (put, moved)]
    assert places == [[1], [3]]
    assert all(swapped["z"][name] == put["z"][name] for name in ("whether", "where", "what"))
    assert swapped["canvas"] == put["canvas"]
    served.check(put)


def test_parts_that_give_way_are_counted(tmp_path: Path) -> None:
    served = Served(save_model(tmp_path, COLOUR))
    full = {"whether": [True] * 12, "where": list(range(12)), "what": [1] * 12}
    put = served.post("/v1/edit", {"z": full, "edit": {"kind": "put", "place": 20, "part": 4}})
    assert (put["parts"], put["dropped"]) == (12, 1)
    other = {**full, "where": list(range(20, 25)) + [0] * 7, "whether": [True] * 5 + [False] * 7}
    both = served.post("/v1/compose", {"a": full, "b": other, "places": [*range(20, 25)]})
    assert (both["parts"], both["dropped"]) == (12, 5)


def test_the_steps_end_in_the_drawing(served: Served) -> None:
    drawing = served.post("/v1/sample", {"seed": 1})
    frames = served.post("/v1/steps", {"z": drawing["z"]})["frames"]
    assert len(frames) == drawing["parts"] + 1
    assert pixels(frames[0]["canvas"]).max() == 0
    assert frames[-1]["canvas"] == drawing["canvas"]
    assert np.abs(pixels(frames[-1]["image"]).astype(int) - pixels(drawing["image"])).max() <= 1
    for before, after in itertools.pairwise(frames):
        changed = (pixels(before["canvas"]) != pixels(after["canvas"])).any(0)
        top, left = served.model.grid.corners[after["place"]].tolist()
        side = served.model.grid.patch
        changed[top : top + side, left : left + side] = False
        assert not changed.any()


def test_the_first_and_last_frame_of_a_grey_gif_are_the_sample_exactly(grey: Served) -> None:
    drawing = grey.post("/v1/sample", {"seed": 3})
    answer = grey.client.post("/v1/steps.gif", json={"z": drawing["z"]})
    assert answer.headers["content-type"] == "image/gif"
    with Image.open(io.BytesIO(answer.content)) as gif:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    at_once = -(-drawing["parts"] // ALIGNED_FRAMES)
    assert len(frames) == -(-drawing["parts"] // at_once) + 2  # it is the first and the last frame
    canvas, image = (pixels(drawing[name])[0].repeat(4, 0).repeat(4, 1) for name in ("canvas", "image"))
    right = frames[-1].shape[1] - 4 - 112
    for frame in (frames[0], frames[-1]):
        np.testing.assert_array_equal(frame[24:136, right : right + 112], canvas)
        np.testing.assert_array_equal(frame[140:252, right : right + 112], image)


def test_a_picture_is_encoded(served: Served) -> None:
    channels, height, width = served.model.spec.image_shape
    array = np.random.default_rng(0).integers(0, 2, (height, width, channels), dtype=np.uint8) * 255
    file = png_of(array[..., 0] if channels == 1 else array)
    answer = served.client.post("/v1/encode?invert=no&crop=no", files={"file": ("a.png", file)})
    assert answer.status_code == 200
    drawing = answer.json()
    x = torch.tensor(array).permute(2, 0, 1)[None] / 255
    expected = served.model.encode(x)
    assert pixels(drawing["original"]).tolist() == array.transpose(2, 0, 1).tolist()
    np.testing.assert_array_equal(pixels(drawing["canvas"]), as_bytes(served.model.render(expected)[0]))
    inverted = served.client.post("/v1/encode?invert=yes&crop=no", files={"file": ("a.png", file)}).json()
    assert pixels(inverted["original"]).tolist() == (255 - array).transpose(2, 0, 1).tolist()


def test_a_test_image_is_encoded(grey: Served) -> None:
    drawing = grey.client.get("/v1/test/49").json()
    assert pixels(drawing["original"]).max() == 0
    grey.check(drawing)
    missing = grey.client.get("/v1/test/50")
    assert (missing.status_code, missing.json()["detail"]) == (404, "test image 50; there are 50")


def blank(**changes: Any) -> Json:
    return {"whether": [True] * 36, "where": list(range(36)), "what": [0] * 36} | changes


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/decode", {"z": blank(what=[20] * 36)}, "what is 20, outside 0 to 19"),
        ("/v1/decode", {"z": blank(where=[36] * 36)}, "where is 36"),
        ("/v1/decode", {"z": blank(where=[0] * 36)}, "step t draws at place t"),
        ("/v1/decode", {"z": blank(where=[-1] * 36)}, "greater than or equal to 0"),
        ("/v1/decode", {"z": blank(what=[2**70] * 36)}, "what"),
        ("/v1/decode", {"z": blank(whether=[True])}, "of one length"),
        ("/v1/decode", {"z": {"whether": [], "where": [], "what": []}}, "36 steps, not 0"),
        ("/v1/decode", {"z": blank(whether=[True] * 5000)}, "at most 4096"),
        ("/v1/decode", {"z": blank(), "path": "/etc/passwd"}, "path: Extra inputs"),
        ("/v1/decode", {}, "z: Field required"),
        ("/v1/decode", {"z": blank(u="AAAA")}, "u: this model has no such numbers"),
        ("/v1/compose", {"a": blank(), "b": blank(), "places": [36]}, "place 36: the grid has 6 rows"),
        (
            "/v1/edit",
            {"z": blank(), "edit": {"kind": "put", "place": 0, "part": 20}},
            "part 20; the bank has 0",
        ),
        ("/v1/edit", {"z": blank(), "edit": {"kind": "move", "source": 0, "target": 36}}, "place 36"),
        ("/v1/edit", {"z": blank(), "edit": {"kind": "swap", "first": 36, "second": 0}}, "place 36"),
        ("/v1/edit", {"z": blank(), "edit": {"kind": "burn"}}, "edit"),
        ("/v1/sample", {"seed": -1}, "seed"),
        ("/v1/sample", {"seed": 2**32}, "seed"),
        ("/v1/sample", {"temperature": 0}, "temperature"),
        ("/v1/sample", {"temperature": 1e9}, "temperature"),
        ("/v1/steps", {"z": blank(what=[20] * 36)}, "what is 20"),
        ("/v1/steps.gif", {"z": blank(what=[20] * 36)}, "what is 20"),
    ],
)
def test_what_is_refused(path: str, body: Json, says: str, grey: Served) -> None:
    assert says in grey.post(path, body, 422)["detail"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"seed": NaN}', b'{"temperature": Infinity}', b"[" * 100_000, b"\xff"]
)
def test_a_body_that_is_no_request(content: bytes, grey: Served) -> None:
    answer = grey.client.post("/v1/sample", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json()["detail"], str)


def test_a_file_that_is_no_picture(grey: Served) -> None:
    for content, status, says in (
        (b"no picture", 422, "none of PNG"),
        (b"", 422, "empty"),
        (b"0" * (MAX_BYTES + 1), 422, "bytes"),
        (b"0" * (MAX_BYTES + (1 << 17)), 413, "the body is over"),
    ):
        answer = grey.client.post("/v1/encode", files={"file": ("../../etc/passwd", content)})
        assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text


@pytest.mark.parametrize(("error", "status"), [(StorageFailed("gone"), 500), (ValueError("place 99"), 422)])
def test_a_storage_that_fails_is_not_the_requests_mistake(
    error: Exception, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(save_model(tmp_path, GREY))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Engine, "examples", fail)
    client = TestClient(served.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    assert client.get("/v1/examples").status_code == status


def test_a_body_of_unknown_length_is_cut_off(grey: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * MAX_JSON_BYTES:
            sent += 1 << 16
            yield b" " * (1 << 16)

    answer = grey.client.post("/v1/decode", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_headers_of_every_answer(grey: Served) -> None:
    paths = ("/", "/docs", "/healthz", "/nowhere", "/v1/test/99")
    answers = [grey.client.get(path) for path in paths]
    answers += [
        grey.client.post("/v1/decode", json={}),
        grey.client.post("/v1/decode", content=b" " * (2 << 20)),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 422, 413]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere_and_only_their_own_script(path: str, grey: Served) -> None:
    answer = grey.client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    text = answer.text.replace(f'<a href="{PAPER}"', "<a")  # nothing is loaded before a click
    assert (text != answer.text) == (path == "/")
    named = set(re.findall(r'(?:src|href)="([^"]*)"', text))
    elsewhere = {name for name in named if not name.startswith("#")}
    assert elsewhere <= {"data:,", "/", "/docs", "/openapi.json"}
    assert re.findall(r"(?:https?:)?//[a-z]+\.", text) == []
    for tag in ("script", "style"):
        for block in re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.S):
            digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_the_reference_names_every_operation(grey: Served) -> None:
    page = grey.client.get("/docs").text
    paths = grey.client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/sample", "/v1/encode", "/v1/complete", "/healthz"}
    assert {path for path in paths if not path.startswith("/v1/")} == {"/healthz"}
    assert all(f"</b> {path}</h2>" in page for path in paths)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "169.254.169.254"])
def test_another_name_for_this_machine_is_refused(host: str, grey: Served) -> None:
    assert grey.client.get("/healthz", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/test/..%2f..%2fetc", "/page.html"]
)
def test_no_path_reaches_the_file_system(path: str, grey: Served) -> None:
    assert grey.client.get(path).status_code in (404, 422)
