"""Inference needs torch, NumPy, safetensors, huggingface_hub, pydantic and Pillow alone, and never Ray.

A Python process that refuses to import any other third-party package but those that these six require.
"""

import subprocess
import sys
from pathlib import Path

from tests.helpers.tiny_baselines import tiny_baseline
from tests.helpers.tiny_models import tiny_model, tiny_spec

ALONE = """
import re
import sys
from importlib import metadata

def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()

allowed, waiting = set(), ["torch", "numpy", "safetensors", "huggingface_hub", "pydantic", "pillow"]
while waiting:
    if (name := canonical(waiting.pop())) not in allowed:
        allowed.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        waiting += [re.match(r"[\\w.-]+", line)[0] for line in lines if "extra ==" not in line]
owners = metadata.packages_distributions()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        of = {canonical(owner) for owner in owners.get(top, [])}
        if top != "npdraw_dist" and of and not of & allowed:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
        return None

sys.meta_path.insert(0, Refuse())
try:
    import ray
    raise AssertionError("it is refused")
except ModuleNotFoundError:
    pass
"""
USE = """
import numpy as np
from PIL import Image

import npdraw_dist
from npdraw_dist.nn.hub import HubModel
from npdraw_dist import Drawings, NPDraw, PartBank, PartSequence, to_pil

model = npdraw_dist.load("npdraw")
images = model.sample(4, seed=0)
z = model.encode(images)
assert isinstance(z, PartSequence) and isinstance(model.bank, PartBank)
model.log_weights(np.zeros((2, 4, 4), np.uint8), k=2)
assert model.reconstruct(Image.new("L", (4, 4))).shape == (1, 1, 4, 4)
made = model.compose(images[:2], images[2:], "0:1,:")
assert isinstance(made, Drawings) and made._repr_html_() and model.bank._repr_html_()
assert len(to_pil(model.edit(made, remove=[0]).images)) == 2
model.complete(made, keep=[1], seed=0)
assert len(model.interpolate(images[0], images[1])) > 0
assert model.features(images).shape[0] == 4
NPDraw.from_pretrained("npdraw").save_pretrained("again", model_card_kwargs={"samples": 4})
vae = HubModel.from_pretrained("vae")
assert vae.sample(3, seed=1).shape == (3, 1, 6, 6)
assert "ray" not in sys.modules
"""


def test_inference_without_the_libraries_of_training(tmp_path: Path) -> None:
    tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4)).save_pretrained(tmp_path / "npdraw")
    tiny_baseline("vae").save_pretrained(tmp_path / "vae")
    command = [sys.executable, "-c", ALONE + USE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
