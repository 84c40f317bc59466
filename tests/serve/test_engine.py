"""What the API does, on a model whose canvas is white. No HTTP, no Ray."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from npdraw_dist.serve.engine import Engine
from npdraw_dist.serve.schemas import Latents
from tests.helpers.tiny_models import random_drawings, tiny_model, tiny_spec


def picture(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_the_drawing_on_white_begins_with_a_white_canvas() -> None:
    model = tiny_model(tiny_spec("raster", image_shape=(1, 6, 6), steps=4, background="white"))
    z = random_drawings(model.spec, 8)
    z = z[z.whether.any(1)][:1]
    frames = Engine(model).frames(Latents(**{k: v[0].tolist() for k, v in vars(z).items()})).frames
    assert len(frames) == int(z.whether.sum()) + 1
    assert (picture(frames[0].canvas) == 255).all()
    last = (model.render(z)[0, 0] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(picture(frames[-1].canvas), last)


def test_a_transparent_upload_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(file, "PNG")
    for background, grey in (("black", 0), ("white", 255)):
        model = tiny_model(tiny_spec("raster", image_shape=(1, 6, 6), background=background))
        assert Engine(model).describe().background == background
        assert (Engine(model).place_upload(file.getvalue(), "no", crop=False)[0] == grey).all()
