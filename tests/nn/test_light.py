"""Inference needs torch, NumPy, safetensors, huggingface_hub, pydantic and Pillow alone, and never Ray.

A Python process that refuses to import any other third-party package but those that these six require.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_baselines import tiny_baseline
from tests.helpers.tiny_models import tiny_model, tiny_spec

ALONE = """
import re
import sys
from importlib import metadata

NEEDED = ["torch", "numpy", "safetensors", "huggingface_hub", "pydantic", "pillow"]

def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def required(names):
    found, waiting = set(), [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        waiting += [canonical(re.match(r"[\\w.-]+", line)[0]) for line in lines if "extra ==" not in line]
    return found

allowed = required(NEEDED)
owners = metadata.packages_distributions()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        of = {canonical(owner) for owner in owners.get(top, [])}
        if top != "npdraw_dist" and of and not of & allowed:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
        return None

sys.meta_path.insert(0, Refuse())
for name in ("ray", "pyarrow", "matplotlib", "scipy", "pydantic_settings"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""
USE = """
import numpy as np
from PIL import Image

import npdraw_dist
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
vae = npdraw_dist.load("vae")
assert vae.sample(3, seed=1).shape == (3, 1, 6, 6)
assert "ray" not in sys.modules
print("drawn")
"""


def test_inference_without_the_libraries_of_training(tmp_path: Path) -> None:
    tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4)).save_pretrained(tmp_path / "npdraw")
    tiny_baseline("vae").save_pretrained(tmp_path / "vae")
    done = subprocess.run(
        [sys.executable, "-c", ALONE + USE], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("drawn\n")


COMMANDS = """
import sys
sys.modules["ray"] = None  # so that its import fails
from npdraw_dist import sample
from npdraw_dist.edit import __main__ as edit
sample.main(["--model", "npdraw", "--n", "2", "--out", "drawn"])
drawings = ["--a", "sample:1", "--b", "sample:2", "--region", "0:1,:", "--keep", "0:1,:"]
edit.main(["--model", "npdraw", *drawings, "--out", "made"])
"""


@pytest.mark.slow
def test_the_commands_of_inference_without_ray(tmp_path: Path) -> None:
    tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4)).save_pretrained(tmp_path / "npdraw")
    command = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "drawn" / "samples.png").is_file()
    assert (tmp_path / "made" / "completion.png").is_file()
