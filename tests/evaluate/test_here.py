"""`evaluate --scale.num_workers 0`: in this process, without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import npdraw_dist
from npdraw_dist.pipeline.models import load_model
from npdraw_dist.pipeline.scores import score_images
from npdraw_dist.pipeline.store import Store
from tests.pipeline.test_fit import SMALL, strokes

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from npdraw_dist.evaluate.__main__ import main
main(sys.argv[1:])
"""


def test_an_evaluation_needs_no_ray(tmp_path: Path) -> None:
    """Its numbers are the scores of the images, and the card has them."""
    npdraw_dist.fit(strokes(), name="bars", storage=str(tmp_path), **SMALL)
    words = ["--model", str(tmp_path / "bars"), "--split", "valid", "--k", "3", "--scale.num_workers", "0"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "bars" / "evaluation.json").read_text())
    parses = Store.open(str(tmp_path), "bars").parses("valid")
    images = parses.at(np.arange(len(parses))).images
    assert (found["n"], found["split"], found["made_by"]["actors"]) == (len(images), "valid", 1)
    scores = score_images(load_model(str(tmp_path / "bars")), images, 3, 0, 0, 0)
    for name in ("nll_iwae", "elbo"):
        assert found[name] == pytest.approx(float(torch.as_tensor(scores[name]).mean()), rel=1e-5), name
    card = tmp_path / "bars" / "model" / "README.md"
    assert done.stdout.splitlines()[-1] == str(card)
    assert f"| `nll_iwae` | {found['nll_iwae']:,.4f} nats |" in card.read_text()
