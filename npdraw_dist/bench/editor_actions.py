"""The studio's actions as requests: what a visitor of the page asks for, each on drawings of the model."""

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROPOSALS, GALLERY = 4, 12  # drawings asked for at once, as the page does


@dataclass(frozen=True)
class Request:
    """One request. body: JSON of a POST; None is a GET. image: the pixels that /decode must return."""

    path: str
    body: bytes | None = None
    image: NDArray[np.uint8] | None = None

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


def decoding(z: dict[str, Any], image: NDArray[np.uint8]) -> Request:
    """To decode z, whose image (H, W) or (H, W, C) is known."""
    return Request("/v1/decode", _json(z=z), image)


def actions(
    a: dict[str, Any], b: dict[str, Any], image: NDArray[np.uint8], places: int
) -> dict[str, Request]:
    """Action -> a request for it. a, b: drawings; image: (H, W) or (H, W, C), of `a`; places: L."""
    upper = list(range(places // 2))
    return {
        "decode": decoding(a, image),
        "parse": Request("/v1/parse", _json(image=_png(image))),
        "compose": Request("/v1/compose", _json(a=a, b=b, places=upper)),
        "edit": Request("/v1/edit", _json(z=a, edit={"kind": "put", "place": 0, "part": 0})),
        "steps": Request("/v1/steps", _json(z=a)),
        "interpolate": Request("/v1/interpolate", _json(a=a, b=b)),
        "sample": Request("/v1/sample", _json(seed=0)),
        "gallery": Request(f"/v1/gallery?n={GALLERY}&seed=0"),
        "complete": Request("/v1/complete", _json(z=a, keep=upper, n=PROPOSALS)),
        "next": Request("/v1/next", _json(z=a)),
        "svg": Request("/v1/drawing.svg", _json(z=a)),
        "pdf": Request("/v1/drawing.pdf", _json(z=a)),
        "strip": Request("/v1/strip.png", _json(z=a)),
        "gif": Request("/v1/steps.gif", _json(z=a)),
    }


def _json(**body: Any) -> bytes:
    return json.dumps(body).encode()


def _png(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
